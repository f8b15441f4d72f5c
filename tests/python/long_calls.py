"""Peak memory of attention forward and backward at a length, in a process of its own.

    python long_calls.py LENGTH FEATURE_MAP causal|noncausal HEADS

prints one line of JSON: the bytes of inputs, output and gradients, and the peak of the resident set above what the
process held before any of them existed.
"""

import json
import sys
from pathlib import Path

import torch

import protperf
from protperf.torch import favor_attention


def resident(field):
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def attention(length, feature_map, causal, heads):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, 32, generator=generator).requires_grad_() for _ in range(3))
    omega = torch.from_numpy(protperf.draw_projection(128, 32)).float()
    out = favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal)
    grad = torch.ones_like(out)
    out.backward(grad)
    peak = resident("VmHWM")
    tensors = (q, k, v, out, grad, q.grad, k.grad, v.grad)
    assert all(x.isfinite().all() for x in tensors)
    return sum(x.numel() * x.element_size() for x in tensors), peak


def main():
    length, feature_map, form, heads = sys.argv[1:]
    torch.set_num_threads(1)
    # Everything that is loaded or grown once is there before the measurement.
    attention(2048, feature_map, form == "causal", 1)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    held, peak = attention(int(length), feature_map, form == "causal", int(heads))
    json.dump({"held": held, "peak": peak - before}, sys.stdout)


if __name__ == "__main__":
    main()
