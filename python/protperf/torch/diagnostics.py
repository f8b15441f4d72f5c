"""Checks of an installation on the machine it runs on; `protperf doctor` prints them."""

from __future__ import annotations

from typing import Any

from protperf import _native
from protperf.functional import draw_projection

__all__ = ["isa_parity", "thread_parity"]

_BOUND = 1e-5


def isa_parity() -> list[dict[str, Any]]:
    """The kernels of each instruction set in float32 against the plain form in float64: name, found, ok."""
    import numpy as np
    import torch

    from protperf.torch import reference

    q, k, v, omega = _tensors()
    plain = reference.favor_attention(
        torch.from_numpy(q), torch.from_numpy(k), torch.from_numpy(v), torch.from_numpy(omega), causal=True
    ).numpy()
    checks = []
    for isa in _native.build_info()["isas"]:
        out = _forward(q, k, v, omega, causal=True, isa=isa)
        error = float(np.linalg.norm(out - plain) / np.linalg.norm(plain))
        found = f"relative error {error:.1e}"
        checks.append({"name": f"{isa} kernels against float64", "found": found, "ok": error < _BOUND})
    return checks


def thread_parity() -> dict[str, Any]:
    """The same bits for one thread and for three: name, found, ok."""
    import numpy as np

    one, three = (_forward(*_tensors(), causal=False, num_threads=n) for n in (1, 3))
    same = bool(np.array_equal(one, three))
    return {"name": "1 thread against 3", "found": "the same bits" if same else "different bits", "ok": same}


def _tensors() -> tuple[Any, ...]:
    import numpy as np

    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 200, 64)) for _ in range(3))
    return q, k, v, draw_projection(256, 64)


def _forward(q: Any, k: Any, v: Any, omega: Any, **options: Any) -> Any:
    import numpy as np

    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    out, den = np.empty(v.shape, np.float32), np.empty((*v.shape[:3], 2), np.float32)
    _native.favor_forward(q, k, v, omega, out, den, **options)
    return out
