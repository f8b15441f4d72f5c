"""`protperf doctor`: does this installation compute what it should on this machine?"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from protperf.lm.cli import EXIT_RESOURCES


def run(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> int:
    import torch

    from protperf import build_info

    checks: list[dict[str, Any]] = [*_parity(), _threads()]
    report = {**build_info(), "torch": torch.__version__, "checks": checks}
    healthy = all(check["ok"] for check in checks)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        for name in ("version", "profile", "target", "isa", "isas", "num_threads", "torch"):
            value = report[name]
            print(f"{name:<12} {', '.join(value) if isinstance(value, tuple) else value}")
        for check in checks:
            print(f"{'ok' if check['ok'] else 'FAIL':<5}{check['name']}: {check['found']}")
        print("all well" if healthy else "something is wrong; please report the lines above")
    return 0 if healthy else EXIT_RESOURCES


def _tensors() -> tuple[Any, ...]:
    import numpy as np

    from protperf import draw_projection

    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 200, 64)) for _ in range(3))
    return q, k, v, draw_projection(256, 64)


def _parity() -> list[dict[str, Any]]:
    """Each instruction set in f32 against the plain form in f64."""
    import numpy as np
    import torch

    from protperf import _native
    from protperf.torch import reference

    q, k, v, omega = _tensors()
    found = []
    plain = reference.favor_attention(
        *(torch.from_numpy(x[:, :, :64]) for x in (q, k, v)), torch.from_numpy(omega), causal=True
    )
    for isa in _native.build_info()["isas"]:
        arrays = [np.ascontiguousarray(x, np.float32) for x in (q, k, v)]
        out, den = np.empty((1, 2, 200, 64), np.float32), np.empty((1, 2, 200, 2), np.float32)
        _native.favor_forward(*arrays, omega, out, den, feature_map="positive", causal=True, isa=isa)
        truth = plain.numpy()
        error = float(np.linalg.norm(out[:, :, :64] - truth) / np.linalg.norm(truth))
        found.append(
            {"name": f"{isa} kernels against float64", "found": f"relative error {error:.1e}", "ok": error < 1e-5}
        )
    return found


def _threads() -> dict[str, Any]:
    """The same bits for one thread and for several."""
    import numpy as np

    from protperf import _native

    q, k, v, omega = (np.ascontiguousarray(x, np.float32) for x in _tensors())
    outs = []
    for num_threads in (1, 3):
        out, den = np.empty_like(v), np.empty((1, 2, 200, 2), np.float32)
        _native.favor_forward(
            q, k, v, omega.astype(np.float64), out, den, feature_map="positive", causal=False, num_threads=num_threads
        )
        outs.append(out)
    same = bool(np.array_equal(*outs))
    return {"name": "1 thread against 3", "found": "the same bits" if same else "different bits", "ok": same}
