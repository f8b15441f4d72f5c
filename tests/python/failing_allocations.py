"""Runs in a process of its own, under `failing_malloc.c`: every large allocation of every operation fails once.

Prints one JSON line per case: its name, how many allocations failed in turn, and what was wrong.
"""

import ctypes
import json
import os
import sys

import numpy as np

import protperf
import protperf.io

SHIM = ctypes.CDLL(None)
SHIM.failing_malloc_arm.argtypes = [ctypes.c_long, ctypes.c_size_t, ctypes.c_int]
SHIM.failing_malloc_failed.restype = ctypes.c_long
LARGE = 64 << 10
"""Smallest allocation in bytes that counts: where fewer cannot be had, the interpreter itself fails."""
STICKY = (0, 1) if "--all-later" in sys.argv else (0,)
"""Whether one allocation fails, or also all after it."""
MAX_ALLOCATIONS = 400
"""More large allocations than any case makes."""
LENGTH, WIDTH, FEATURES = 300, 64, 320


def outcome(call, needed, n, sticky):
    """Whether an allocation failed, and what was wrong with the error of the call."""
    SHIM.failing_malloc_arm(n, LARGE, sticky)
    try:
        found = call()
        error_text = None
    except MemoryError as error:
        error_text = "MemoryError" if names_size(error) else f"no size in {error!r}"
    except BaseException as error:
        error_text = f"{type(error).__name__}: {str(error)[:200]}"
    failed = SHIM.failing_malloc_failed()
    SHIM.failing_malloc_arm(0, 0, 0)
    if error_text is None and not same(found, needed):
        return failed, "wrong result"
    if error_text not in (None, "MemoryError"):
        return failed, error_text
    return failed, None


def names_size(error):
    """Errors of ours name bytes or a shape, but the interpreter's own MemoryError does not know them."""
    text = str(error)
    return isinstance(error, protperf.Error) and (any(x.isdigit() for x in text) or text.startswith("the interpreter"))


def same(found, needed):
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(found, needed, strict=True))


def check(name, call):
    needed = call()
    wrong, counts = [], []
    for sticky in STICKY:
        for n in range(1, MAX_ALLOCATIONS):
            renew_workers()
            failed, fault = outcome(call, needed, n, sticky)
            if fault:
                wrong.append(f"allocation {n}{' and later' if sticky else ''}: {fault}")
            if not failed:
                break
            if not same(call(), needed):
                wrong.append(f"call after allocation {n} failed: wrong result")
        counts.append(n - 1)
    print(json.dumps({"case": name, "failed": counts, "wrong": wrong}), flush=True)


def inputs(dtype, **options):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 4, LENGTH, WIDTH)).astype(dtype) for _ in range(3))
    return q, k, v, protperf.draw_projection(FEATURES, WIDTH)


def renew_workers():
    """End the workers by a call with another number of threads, so that scratch is allocated anew."""
    wanted = os.environ["PROTPERF_NUM_THREADS"]
    os.environ["PROTPERF_NUM_THREADS"] = "3"
    protperf.favor_attention(ONES, ONES, ONES, DIRECTIONS)
    os.environ["PROTPERF_NUM_THREADS"] = wanted


ONES = np.ones((1, 2, 512, 64), np.float32)
DIRECTIONS = protperf.draw_projection(256, 64)


def numpy_cases():
    mask = np.zeros((1, LENGTH), bool)
    mask[0, ::7] = True
    for dtype in (np.float32, np.float64):
        q, k, v, omega = inputs(dtype)
        for feature_map in ("positive", "hyperbolic", "smreg", "relu", "trigonometric"):
            yield (
                f"favor {feature_map} {dtype.__name__}",
                lambda q=q, k=k, v=v, o=omega, m=feature_map: [
                    protperf.favor_attention(q, k, v, o, feature_map=m, causal=m in ("positive", "relu"))
                ],
            )
        columns = [np.asfortranarray(x) for x in (q, k, v)]
        stacked = np.stack([omega] * 4)
        yield (
            f"favor strided, omega per head {dtype.__name__}",
            lambda x=columns, o=stacked: [protperf.favor_attention(*x, o)],
        )
    q, k, v, omega = inputs(np.float32)
    half = [x.astype(np.float16) for x in (q, k, v)]
    yield "favor float16", lambda: [protperf.favor_attention(*half, omega)]
    short = [x[:, :1] for x in (q, k, v)]
    yield "softmax", lambda: [protperf.softmax_attention(*short, causal=True)]
    tall = [np.ones((1, 1, 70_000, 1), np.float32) for _ in range(3)]
    padded = np.zeros((1, 70_000), bool)
    padded[0, 5:] = True
    yield "favor mask", lambda: [protperf.favor_attention(*tall, np.ones((1, 1)), key_padding_mask=padded)]
    borders = np.arange(70_001)
    yield "favor segments", lambda: [protperf.favor_attention(*tall, np.ones((1, 1)), cu_seqlens=borders)]
    few = [x[:, :, :9000] for x in tall]
    yield (
        "softmax mask",
        lambda: [protperf.softmax_attention(tall[0][:, :, :3], *tall[1:], key_padding_mask=padded)],
    )
    yield "softmax segments", lambda: [protperf.softmax_attention(*few, cu_seqlens=borders[:9001])]
    yield "draw", lambda: [protperf.draw_projection(300, 100), protperf.draw_projection(300, 100, sampler="iid")]
    text = "ACDEFGHIKLMNPQRSTVWY" * 20_000
    yield "encode", lambda: [protperf.io.encode(text)[0]]


def torch_cases():
    import torch

    from protperf import torch as pt

    torch.set_num_threads(1)

    weight = {dtype: torch.ones(1, 4, LENGTH, WIDTH, dtype=dtype) for dtype in (torch.float32, torch.float64)}

    def gradients(tensors, learns, **options):
        q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
        omega = tensors[3].detach().requires_grad_(learns)
        out = pt.favor_attention(q, k, v, omega, **options)
        grads = torch.autograd.grad(out, [q, k, v, *[omega] * learns], weight[out.dtype])
        return [x.detach().numpy() for x in (out, *grads)]

    for dtype in (torch.float32, torch.float64):
        q, k, v, omega = (torch.from_numpy(x) for x in inputs(np.float64))
        tensors = [x.to(dtype) for x in (q, k, v)] + [omega.float()]
        yield f"backward {dtype}", lambda t=tensors: gradients(t, True, causal=True)
        yield f"backward without omega {dtype}", lambda t=tensors: gradients(t, False, feature_map="relu")
    # The gradients of the casts are nodes of torch's own, whose errors are torch's.
    half = [x.bfloat16() for x in (q, k, v)]
    yield "bfloat16", lambda: [pt.favor_attention(*half, omega).view(torch.int16).numpy()]
    q, k, v, omega = (torch.from_numpy(x).float() for x in inputs(np.float64))
    state = pt.favor_attention_with_state(q, k, v, omega)[1]
    yield "state", lambda: [x.numpy() for x in pt.favor_attention_with_state(q, k, v, omega, state)]
    yield "merge", lambda: [pt.merge_states(state, state).numpy()]
    yield "softmax", lambda: [pt.softmax_attention(q, k, v, causal=True).numpy()]
    mask = torch.zeros(1, LENGTH, dtype=torch.bool)
    yield "softmax mask", lambda: [pt.softmax_attention(q, k, v, key_padding_mask=mask).numpy()]
    borders = torch.tensor([0, 200, LENGTH])
    yield "softmax segments", lambda: [pt.softmax_attention(q, k, v, cu_seqlens=borders).numpy()]
    module = pt.nn.FavorAttention(64, 256, num_heads=4)
    yield "module", lambda: [module(q, k, v).numpy()]
    yield "redraw", lambda: [module.redraw(1) or module.omega.numpy()]


if __name__ == "__main__":
    for name, call in {"numpy": numpy_cases, "torch": torch_cases}[sys.argv[1]]():
        check(name, call)
