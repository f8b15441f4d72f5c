"""Digests of attention's outputs and gradients, on the instruction set that `PROTPERF_ISA` names.

Run by `run.py`, once for each instruction set: the choice is made once per process. The arguments are types of tensors,
and the numbers of threads whose bits must agree.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator

import numpy as np
import passes
import torch
from corpus import FURTHER_MAPS, MAPS, Case, groups

import protperf
from protperf.torch import favor_attention

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
# Tensors of bf16 are pinned as every processor computes them, and with products of bf16 where AMX multiplies.
BACKENDS = {"f32": "auto", "f64": "auto", "bf16": "cpu", "f16": "cpu"}
# One map of each family.
FAMILIES = ("positive", "relu", "trigonometric")


def main() -> int:
    """Print one line for each group: its name and the digest of every bit that it computes."""
    types = [word for word in sys.argv[1:] if word in DTYPES]
    threads = [int(word) for word in sys.argv[1:] if word not in DTYPES]
    for name, cases in groups():
        feature_map = cases[0].feature_map
        is_sixteen = name.endswith("shapes") and feature_map in MAPS
        labels = ["f32", "f64", *["bf16"] * is_sixteen, *["f16"] * (is_sixteen and feature_map in FAMILIES)]
        for label in (label for label in labels if label in types):
            print(f"{name} {label}\t{digest(computed(cases, DTYPES[label], BACKENDS[label], threads))}", flush=True)
        if is_sixteen and "bf16" in types and protperf.build_info()["bf16"] == "amx":
            print(f"{name} bf16 amx\t{digest(computed(cases, torch.bfloat16, 'cpu-bf16', threads))}", flush=True)
    for label in (label for label in ("f32", "f64") if label in types):
        dtype = DTYPES[label]
        for feature_map in (*MAPS, *FURTHER_MAPS):
            print(f"{feature_map} states {label}\t{digest(passes.states(feature_map, dtype))}", flush=True)
            found = digest(passes.state_gradients(feature_map, dtype))
            print(f"{feature_map} state gradients {label}\t{found}", flush=True)
        print(f"log-linear {label}\t{digest(passes.log_linear(dtype))}", flush=True)
        print(f"exact {label}\t{digest(passes.exact(dtype))}", flush=True)
        for attention in ("exact", *FAMILIES):
            print(f"block {attention} {label}\t{digest(passes.block(attention, dtype))}", flush=True)
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


def computed(cases: list[Case], dtype: torch.dtype, backend: str, threads: list[int]) -> Iterator[torch.Tensor]:
    """Outputs and gradients of some cases on each number of threads, which must agree."""
    for seed, case in enumerate(cases):
        # torch makes the inputs, and its threads take their time for tensors as small as these.
        torch.set_num_threads(1)
        arrays = {name: torch.from_numpy(array) for name, array in case.inputs(seed).items()}
        limited = {name: _limited(arrays[name], dtype) for name in ("q", "k", "v", "grad")}
        omega = arrays["omega"] if case.has_omega else None
        found, *others = (_gradients(case, limited, omega, backend, number) for number in threads)
        torch.set_num_threads(1)
        for a, b in ((a, b) for other in others for a, b in zip(found, other, strict=True)):
            if not torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0)):
                raise SystemExit(f"the number of threads changes bits of {case}")
        yield from found


def _gradients(
    case: Case, tensors: dict[str, torch.Tensor], omega: torch.Tensor | None, backend: str, threads: int
) -> list[torch.Tensor]:
    torch.set_num_threads(threads)
    q, k, v = (tensors[name].detach().requires_grad_() for name in "qkv")
    omega = None if omega is None else omega.detach().requires_grad_()
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
    leaves = [q, k, v] if omega is None else [q, k, v, omega]
    return [out, *torch.autograd.grad(out, leaves, tensors["grad"])]


def _limited(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in a type, with finite numbers kept finite."""
    largest = torch.finfo(dtype).max
    return torch.where(tensor.isfinite(), tensor.clamp(-largest, largest), tensor).to(dtype)


if __name__ == "__main__":
    sys.exit(main())
