"""Digests of attention's outputs and gradients, on the instruction set that `PROTPERF_ISA` names.

Run by `run.py`, once for each instruction set: the choice is made once per process.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator

import numpy as np
import torch
from corpus import MAPS, Case, groups, near_normal

import protperf
from protperf.torch import favor_attention, favor_attention_with_state, merge_states

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}
# Tensors of bf16 are pinned as every processor computes them, and with products of bf16 where AMX multiplies.
BACKENDS = {"f32": "auto", "f64": "auto", "bf16": "cpu"}
STATE_LENGTHS = (1, 63, 64, 130)


def main() -> int:
    """Print one line for each group: its name and the digest of every bit that it computes."""
    for name, cases in groups():
        for label, dtype in DTYPES.items():
            if dtype == torch.bfloat16 and not name.endswith("shapes"):
                continue
            print(f"{name} {label}\t{digest(computed(cases, dtype, BACKENDS[label]))}", flush=True)
        if name.endswith("shapes") and protperf.build_info()["bf16"] == "amx":
            print(f"{name} bf16 amx\t{digest(computed(cases, torch.bfloat16, 'cpu-bf16'))}", flush=True)
    for feature_map in MAPS:
        for label in ("f32", "f64"):
            print(f"{feature_map} states {label}\t{digest(states(feature_map, DTYPES[label]))}", flush=True)
    return 0


def digest(tensors: Iterator[torch.Tensor]) -> str:
    """SHA-256 of shapes, types and bytes; every NaN counts as the same one."""
    total = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().to(torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy()
        array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def computed(cases: list[Case], dtype: torch.dtype, backend: str) -> Iterator[torch.Tensor]:
    """Outputs and gradients of some cases, on one thread and on two, which must agree."""
    for seed, case in enumerate(cases):
        alone, shared = (list(_gradients(case, seed, dtype, backend, threads)) for threads in (1, 2))
        for a, b in zip(alone, shared, strict=True):
            if not torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0)):
                raise SystemExit(f"the number of threads changes bits of {case}")
        yield from alone


def _gradients(case: Case, seed: int, dtype: torch.dtype, backend: str, threads: int) -> Iterator[torch.Tensor]:
    torch.set_num_threads(threads)
    arrays = {name: torch.from_numpy(array) for name, array in case.inputs(seed).items()}
    q, k, v = (_limited(arrays[name], dtype).requires_grad_() for name in "qkv")
    omega = arrays["omega"].requires_grad_() if case.has_omega else None
    mask = case.padding()
    out = favor_attention(
        q,
        k,
        v,
        omega,
        feature_map=case.feature_map,
        causal=case.causal,
        cu_seqlens=None if case.cu_seqlens is None else torch.tensor(case.cu_seqlens),
        key_padding_mask=None if mask is None else torch.from_numpy(mask),
        kernel_epsilon=case.kernel_epsilon,
        backend=backend,
    )
    yield out
    leaves = [q, k, v] if omega is None else [q, k, v, omega]
    yield from torch.autograd.grad(out, leaves, _limited(arrays["grad"], dtype))


def _limited(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in a type, with finite numbers kept finite."""
    largest = torch.finfo(dtype).max
    return torch.where(tensor.isfinite(), tensor.clamp(-largest, largest), tensor).to(dtype)


def states(feature_map: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Outputs and states of a sequence read in pieces, and states merged."""
    torch.set_num_threads(1)
    rng = np.random.Generator(np.random.Philox(11))
    omega = torch.from_numpy(near_normal(rng, 70, 9))
    scale = 0.5 if feature_map == "trigonometric" else 3.0
    state, seen = None, []
    for length in STATE_LENGTHS:
        q, k = (torch.from_numpy(scale * near_normal(rng, 2, 4, length, 9)).to(dtype) for _ in range(2))
        v = torch.from_numpy(near_normal(rng, 2, 2, length, 5)).to(dtype)
        out, state = favor_attention_with_state(q, k[:, :2], v, omega, state, feature_map=feature_map)
        seen.append(state)
        yield from (out, state)
    yield merge_states(seen[0], seen[-1])


if __name__ == "__main__":
    sys.exit(main())
