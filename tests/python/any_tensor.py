"""Generated calls of attention with tensors of any kind: each gives the bits of the contiguous call, or a refusal that
names the argument.

    python any_tensor.py --cases N --seed S [--first I] [--trace FILE]

prints one line of JSON: how many cases gave equal bits, how many were refused, and what was wrong in the others. The
index of the case that runs is kept in FILE, so that whoever started this can tell which one ended the process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import protperf
from protperf.torch import favor_attention, reference

LENGTHS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 70)
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17)
TORCH_TYPES = (torch.float32, torch.float32, torch.float64, torch.float64, torch.float16, torch.bfloat16)
NUMPY_TYPES = (np.float32, np.float32, np.float64, np.float64, np.float16)
ODD_VALUES = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-39, 3.4e38, -3.4e38, 1e-30, 1e4, 65504.0)


@dataclass
class Call:
    """Arguments in float64 and the options of one call; `tensors` holds q, k, v, omega, then masks and borders."""

    tensors: dict[str, Any]
    options: dict[str, Any]
    grad: np.ndarray
    is_tame: bool
    what: list[str] = field(default_factory=list)


def make_call(rng: random.Random, numbers: np.random.Generator) -> Call:
    """A call that is right in every shape."""
    feature_map = rng.choice(("positive", "hyperbolic", "smreg", "relu", "elu1", "trigonometric"))
    causal, kind = rng.random() < 0.5, rng.choice(("plain", "plain", "mask", "segments"))
    b = 1 if kind == "segments" else rng.choice((0, 1, 1, 1, 2, 3))
    kv_heads, group = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2))
    q_len = rng.choice(LENGTHS)
    kv_len = q_len if causal or kind == "segments" else rng.choice(LENGTHS)
    d, e, m = rng.choice(WIDTHS), rng.choice((0, *WIDTHS)), rng.choice(WIDTHS)
    scale = rng.choice((1.0, 1.0, 1.0, 0.3, 1e-3, 30.0, 1e4, 1e30))
    shapes = {
        "q": (b, kv_heads * group, q_len, d),
        "k": (b, kv_heads, kv_len, d),
        "v": (b, kv_heads, kv_len, e),
        "grad": (b, kv_heads * group, q_len, e),
    }
    tensors: dict[str, Any] = {name: numbers.standard_normal(shape) for name, shape in shapes.items()}
    tensors["q"] *= scale
    tensors["k"] *= scale
    odd = rng.random() < 0.3
    for x in [tensors[name] for name in shapes] if odd else []:
        if x.size and rng.random() < 0.6:
            x.flat[[rng.randrange(x.size) for _ in range(rng.choice((1, 2, 5)))]] = rng.choice(ODD_VALUES)
    omega_shape = (m, d) if rng.random() < 0.7 else (kv_heads * group, m, d)
    without = feature_map in ("relu", "elu1") and rng.random() < 0.3
    grad = tensors.pop("grad")
    tensors["omega"] = None if without else numbers.standard_normal(omega_shape)
    if kind == "mask":
        tensors["key_padding_mask"] = numbers.random((b, kv_len)) < 0.3
    if kind == "segments":
        cuts = sorted(rng.randint(0, q_len) for _ in range(rng.choice((0, 1, 3))))
        tensors["cu_seqlens"] = np.array([0, *cuts, q_len])
    is_tame = not odd and scale <= 1 and feature_map != "trigonometric"
    return Call(tensors, {"feature_map": feature_map, "causal": causal}, grad, is_tame)


# Layouts of torch: each takes a contiguous tensor and gives another of the same shape and type.


def junk(shape: Any, x: torch.Tensor) -> torch.Tensor:
    """Memory between the elements, which no call may use."""
    return torch.full(tuple(shape), torch.nan if x.is_floating_point() else 1, dtype=x.dtype)


def permuted(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    axes = rng.sample(range(x.dim()), x.dim())
    return x.permute(axes).contiguous().permute([axes.index(i) for i in range(x.dim())])


def every_second(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    axis = rng.randrange(x.dim())
    wide = junk([2 * n if i == axis else n for i, n in enumerate(x.shape)], x)
    view = wide[(slice(None),) * axis + (slice(rng.randrange(2), None, 2),)]
    view.copy_(x)
    return view


def inside_a_larger_one(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    before = [rng.randrange(3) for _ in x.shape]
    wide = junk([n + lead + rng.randrange(3) for n, lead in zip(x.shape, before, strict=True)], x)
    view = wide[tuple(slice(lead, lead + n) for n, lead in zip(x.shape, before, strict=True))]
    view.copy_(x)
    return view


def expanded(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    axis = rng.randrange(x.dim())
    return x.narrow(axis, 0, min(1, x.shape[axis])).clone().expand(x.shape) if x.shape[axis] else x


def expanded_scalar(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    return x.flatten()[:1].clone().expand(x.shape) if x.numel() else x


def overlapping(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    if not x.numel():
        return x
    steps = [rng.choice((0, 1, 1, 2)) for _ in x.shape]
    reach = sum((n - 1) * step for n, step in zip(x.shape, steps, strict=True)) + 1
    return x.flatten().repeat(-(-reach // x.numel())).as_strided(x.shape, steps)


def unaligned(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    if x.dtype == torch.bfloat16 or not x.numel():
        return x
    offset = rng.randrange(1, 8)
    raw = np.frombuffer(bytearray(offset) + x.numpy().tobytes(), np.uint8)[offset:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(raw.view(x.numpy().dtype).reshape(x.shape))


def negated(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    return torch._neg_view(-x) if x.is_floating_point() else x


def imaginary(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The imaginary part of a conjugate: steps of two and a pending minus."""
    if x.dtype not in (torch.float32, torch.float64):
        return x
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def odd_strides_of_single_entries(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    strides = [s if n > 1 else rng.choice((0, 97, 2**40)) for n, s in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, strides)


def channels_last(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def parameter(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    return torch.nn.Parameter(x) if x.is_floating_point() else x


def view_of_a_leaf(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    return x.clone().requires_grad_()[:] if x.is_floating_point() else x


TORCH_LAYOUTS = (
    permuted, every_second, inside_a_larger_one, expanded, expanded_scalar, overlapping, unaligned, negated, imaginary,
    odd_strides_of_single_entries, channels_last, parameter, view_of_a_leaf,
)  # fmt: skip
# Borders that are all alike are another call, and mostly an impossible one.
KEEPS_VALUES = tuple(f for f in TORCH_LAYOUTS if f not in (expanded, expanded_scalar, overlapping))


def of_numpy(x: np.ndarray, rng: random.Random) -> Any:
    """An array with the elements of x, or at least of its shape, laid out in some other way."""
    axis = rng.randrange(x.ndim)
    kind = rng.choice(("fortran", "step", "reversed", "broadcast", "unaligned", "swapped", "frozen", "field", "list"))
    if kind == "fortran":
        return np.asfortranarray(x)
    if kind == "step":
        wide = np.repeat(x, 2, axis)
        return wide[(slice(None),) * axis + (slice(None, None, 2),)]
    if kind == "reversed":
        axes = tuple(i for i in range(x.ndim) if i == axis or rng.random() < 0.3)
        return np.flip(np.flip(x, axes).copy(), axes)
    if kind == "broadcast" and x.shape[axis] and x.ndim > 1:
        return np.broadcast_to(np.take(x, [0], axis), x.shape)
    if kind == "unaligned":
        return np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    if kind == "swapped":
        return x.astype(x.dtype.newbyteorder())
    if kind == "field":
        fields = np.zeros(x.shape, [("pad", "u1"), ("x", x.dtype)])
        fields["x"] = x
        return fields["x"]
    if kind == "frozen":
        x = x.copy()
        x.flags.writeable = False
    # A list of numbers is float64, integers or bools to NumPy.
    keeps_type = x.size and x.dtype in (np.float64, np.int64, bool)
    return x.tolist() if kind == "list" and keeps_type else x


# Faults: each makes one argument impossible.

TORCH_KINDS = {
    "int": lambda x: x.nan_to_num(0, 0, 0).int(),
    "bool": lambda x: x > 0,
    "complex": lambda x: torch.complex(x.double(), x.double()),
    "conjugate": lambda x: torch.complex(x.float(), x.float()).conj(),
    "sparse": lambda x: x.to_sparse(),
    "quantised": lambda x: torch.quantize_per_tensor(x.float().nan_to_num(0, 0, 0), 0.1, 0, torch.qint8),
    "meta": lambda x: x.to("meta"),
    "numpy": lambda x: x.double().numpy(),
    "list": lambda x: x.tolist(),
    "nothing": lambda x: None,
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "string": lambda x: "q",
}
NUMPY_KINDS = {
    "int": lambda x: np.nan_to_num(x, nan=0, posinf=0, neginf=0).clip(-9, 9).astype(np.int32),
    "bool": lambda x: x > 0,
    "complex": lambda x: x.astype(np.complex128),
    "object": lambda x: np.where(x > 0, None, "x"),
    "text": lambda x: x.astype("U8"),
    "time": lambda x: np.zeros(x.shape, "M8[s]"),
    "long double": lambda x: x.astype(np.longdouble),
    "nothing": lambda x: None,
}
SHAPES = {
    "an axis less": lambda x: x[0] if x.shape[0] else x.sum(0),
    "an axis more": lambda x: x[None, None],
    "a wider row": lambda x: np.concatenate([x, x[..., :1]], -1),
    "a scalar": lambda x: x.reshape(-1)[:1].reshape(()) if x.size else np.float64(1.0),
}


def spoil(call: Call, rng: random.Random, is_torch: bool) -> tuple[str, Any] | None:
    """Makes one argument impossible in the arrays, or names one and how to make it so later; `call.what` says which."""
    name = rng.choice([name for name, x in call.tensors.items() if x is not None])
    call.what.append(name)
    if name == "cu_seqlens":
        length = call.tensors["q"].shape[2]
        wrong = ([], [1, length], [0, length + 1], [0, length + 1, length], [-1, length], [[0, length]], [0.0, length])
        call.tensors[name] = np.array(rng.choice(wrong))
        return None
    if name == "key_padding_mask":
        x = call.tensors[name]
        wrong = (x[..., None], x.astype(np.int64), x.astype(np.float32), np.zeros((x.shape[0], x.shape[1] + 1), bool))
        call.tensors[name] = rng.choice(wrong)
        return None
    if rng.random() < 0.5:
        kind = rng.choice([kind for kind in SHAPES if name != "v" or kind != "a wider row"])
        if kind == "an axis more" and name == "omega" and call.tensors[name].ndim == 2:
            call.tensors[name] = call.tensors[name][None]
        call.what.append(kind)
        call.tensors[name] = SHAPES[kind](call.tensors[name])
        if name == "omega" and call.tensors[name].ndim == 2 and kind == "an axis less":
            call.tensors[name] = call.tensors[name][0]
        return None
    kinds: dict[str, Any] = TORCH_KINDS if is_torch else NUMPY_KINDS
    usable = [
        kind
        for kind in kinds
        if not (kind == "nothing" and name == "omega" and call.options["feature_map"] in ("relu", "elu1"))
        and not (name == "omega" and kind in ("numpy", "list") and not is_torch)
    ]
    kind = rng.choice(usable)
    call.what.append(kind)
    return name, kinds[kind]


# Running.


def bits_of(x: Any) -> tuple[Any, Any, bytes]:
    """Shape, type and bits, one pattern for every NaN."""
    if isinstance(x, torch.Tensor):
        x = x.detach().resolve_neg().contiguous()
        x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
        return tuple(x.shape), x.dtype, x.view(torch.uint8).numpy().tobytes() if x.dim() else b""
    x = np.where(np.isnan(x), x.dtype.type(np.nan), x)
    return x.shape, x.dtype, x.tobytes()


def run_torch(tensors: dict[str, Any], options: dict[str, Any], grad: torch.Tensor, leaves: list[str]) -> list[Any]:
    given = dict(tensors)
    for name in leaves:
        x = given[name]
        given[name] = x if x.requires_grad else x.detach().requires_grad_()
    out = favor_attention(**given, **options)
    wanted = [given[name] for name in leaves]
    return [out, *(torch.autograd.grad(out, wanted, grad) if wanted else [])]


def plain_copy(x: Any) -> Any:
    return None if x is None else x.detach().resolve_neg().contiguous().clone()


def try_torch(call: Call, rng: random.Random, spoiled: bool) -> str:
    dtype = rng.choice(TORCH_TYPES)
    later = spoil(call, rng, True) if spoiled else None
    tensors = {}
    for name, x in call.tensors.items():
        if x is None:
            tensors[name] = None
            continue
        made = torch.from_numpy(np.ascontiguousarray(x))
        if name in ("q", "k", "v"):
            made = made.to(dtype)
        if name == "omega" and rng.random() < 0.5:
            made = made.to(rng.choice((torch.float32, torch.float64, torch.float16)))
        if name == "cu_seqlens" and made.dtype == torch.int64 and rng.random() < 0.5:
            made = made.int()
        if made.dim() and rng.random() < 0.6:
            layout = rng.choice(KEEPS_VALUES if name == "cu_seqlens" else TORCH_LAYOUTS)
            call.what.append(f"{name} {layout.__name__}")
            made = layout(made, rng)
        tensors[name] = made
    grad = torch.from_numpy(call.grad).to(dtype)
    if rng.random() < 0.6:
        layout = rng.choice(TORCH_LAYOUTS)
        call.what.append(f"grad {layout.__name__}")
        grad = layout(grad, rng).detach()
    if spoiled:
        if later is not None:
            tensors[later[0]] = later[1](plain_copy(tensors[later[0]]))
        return refusal(call, lambda: run_torch(tensors, call.options, grad, []))
    leaves = [name for name in ("q", "k", "v", "omega") if tensors[name] is not None and rng.random() < 0.8]
    call.what.append(f"{str(dtype)[6:]} gradients of {'+'.join(leaves)}")
    plain = {name: plain_copy(x) for name, x in tensors.items()}
    needed = run_torch(plain, call.options, plain_copy(grad), leaves)
    found = run_torch(tensors, call.options, grad, leaves)
    for name, a, b in zip(("out", *leaves), needed, found, strict=True):
        if bits_of(a) != bits_of(b):
            return f"other bits of {name}"
    if call.is_tame and dtype == torch.float64 and plain["omega"] is not None and call.tensors["q"].size:
        truth = reference.favor_attention(
            *(plain[name].double() for name in ("q", "k", "v", "omega")),
            **call.options,
            **{name: x for name, x in plain.items() if name in ("cu_seqlens", "key_padding_mask")},
        )
        if not torch.allclose(needed[0], truth, rtol=1e-9, atol=1e-9):
            return "far from the reference"
    return "equal"


def try_numpy(call: Call, rng: random.Random, spoiled: bool) -> str:
    dtype = rng.choice(NUMPY_TYPES)
    later = spoil(call, rng, False) if spoiled else None
    tensors = dict(call.tensors)
    with np.errstate(over="ignore"):
        for name in ("q", "k", "v"):
            tensors[name] = tensors[name].astype(dtype)
    for name, x in tensors.items():
        if x is not None and np.ndim(x) and rng.random() < 0.6:
            tensors[name] = of_numpy(x, rng)
            call.what.append(f"{name} {type(tensors[name]).__name__} {getattr(tensors[name], 'strides', '')}")
    if spoiled:
        if later is not None:
            tensors[later[0]] = later[1](np.asarray(call.tensors[later[0]]))
        return refusal(call, lambda: protperf.favor_attention(**tensors, **call.options))
    if any(isinstance(tensors[name], list) for name in ("q", "k", "v")) and dtype != np.float64:
        raise AssertionError("a list of another type")
    plain = {
        name: None if x is None else np.array(x, order="C").astype(np.asarray(x).dtype.newbyteorder("="))
        for name, x in tensors.items()
    }
    needed = protperf.favor_attention(**plain, **call.options)
    found = protperf.favor_attention(**tensors, **call.options)
    return "equal" if bits_of(needed) == bits_of(found) else "other bits of out"


def refusal(call: Call, run: Any) -> str:
    """How an impossible call was answered."""
    name = call.what[0]
    try:
        run()
    except (TypeError, ValueError) as error:
        # Types and layouts of q decide what the others must be, so a fault of one may be reported as that of another.
        named = re.search(rf"\b{name}\b", str(error))
        ours = isinstance(error, protperf.Error)
        return "refused" if named and ours else f"refused without naming it: {type(error).__name__}: {error}"
    return "an impossible call was answered"


def try_case(seed: int, index: int) -> tuple[str, str]:
    """The verdict on one case, and what it was."""
    rng = random.Random(f"{seed}-{index}")
    call = make_call(rng, np.random.default_rng([seed, index]))
    spoiled, is_torch = rng.random() < 0.3, rng.random() < 0.65
    try:
        verdict = (try_torch if is_torch else try_numpy)(call, rng, spoiled)
    except Exception as error:
        verdict = f"{type(error).__name__}: {error}"
    shapes = {name: np.shape(x) for name, x in call.tensors.items() if x is not None}
    return verdict, f"{'torch' if is_torch else 'numpy'} {call.options} {shapes} {call.what}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--trace")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    trace = os.open(options.trace, os.O_WRONLY | os.O_CREAT, 0o600) if options.trace else None
    counts = {"equal": 0, "refused": 0}
    wrong = []
    for index in range(options.first, options.cases):
        if trace is not None:
            os.pwrite(trace, b"%012d" % index, 0)
        verdict, what = try_case(options.seed, index)
        if verdict in counts:
            counts[verdict] += 1
        else:
            wrong.append(f"{index}: {verdict}: {what}")
    json.dump({**counts, "wrong": wrong}, sys.stdout)


if __name__ == "__main__":
    main()
