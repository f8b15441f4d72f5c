"""What the tests of training share: a small run, and all that a run leaves behind, without the times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import LETTERS, small_config

from protperf.lm.data.hold_out import hold_out
from protperf.lm.data.store import read_store
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.trainer import Trainer

OPTIONS: dict[str, Any] = {
    "steps": 12,
    "batch_tokens": 150,
    "accumulate": 2,
    "redraw_interval": 5,
    "checkpoint_every": 1,
    "log_every": 1,
    "validate": 0.1,
    "warmup": 3,
}


def synthetic(path: Path) -> Path:
    """Forty synthetic proteins of 5 to 60 residues, the same ones every time."""
    rng = np.random.default_rng(5)
    sequences = ["".join(rng.choice(list(LETTERS), int(length))) for length in rng.integers(5, 61, 40)]
    path.write_text("".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    return path


def small_options(**changes: Any) -> TrainOptions:
    """Options of a short run that saves and logs every step."""
    return TrainOptions(**{**OPTIONS, **changes})


def trainer(
    run: Path, fasta: Path, options: TrainOptions | None = None, *, device: str = "cpu", **choices: object
) -> Trainer:
    """A trainer of a small network with dropout."""
    parts = hold_out(read_store(fasta), 0.1, 42, "random")
    run.mkdir(exist_ok=True)
    config = small_config(**{"dropout": 0.1, **choices})
    return Trainer(run, config, options or small_options(), parts.train, parts.held, device=device)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every line of the metrics without times; numbers as hexadecimal text, so that equal means equal in every bit."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("wall_s", "tokens_per_s")
    return [{k: v.hex() if isinstance(v, float) else v for k, v in x.items() if k not in timed} for x in lines]


def losses(run: Path) -> list[str]:
    """The loss of each step in the order of the file."""
    return [line["loss"] for line in metrics(run) if "loss" in line]


def final_digests(run: Path) -> dict[str, str]:
    """SHA-256 of weights, directions and state of the optimizer at the last step."""
    last = max(run.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    return {
        f"{last.name}/{name}": hashlib.sha256((last / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "trainer.safetensors")
    }
