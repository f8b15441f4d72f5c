"""Checkpoints that someone made to break their reader: refused at once, for little memory, with the file named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import environment
from hostile import CASES, build, resign
from machine import HANG_S, start_of
from training import small_options, synthetic, trainer

from protperf.errors import CheckpointError
from protperf.network import Network

MAX_BYTES = 64 << 20
MAX_STARTS = 10
"""How many times as long as an interpreter takes to load NumPy a refusal may take: about a second."""
MEASURED = Path(__file__).with_name("measured.py")


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("hostile")
    options = small_options(steps=3, checkpoint_every=3)
    trainer(folder / "run", synthetic(folder / "proteins.fasta"), options).fit(lambda line: None)
    return folder / "run" / "step-3"


def answers(runs: list[Path], fasta: Path) -> list[list[dict[str, object]]]:
    """What reading and resuming each run comes to; a crash or a hang ends the list."""
    jobs = "".join(json.dumps({"run": str(run), "fasta": str(fasta)}) + "\n" for run in runs)
    result = subprocess.run(
        [sys.executable, MEASURED],
        input=jobs,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env=environment(),
    )
    assert (result.returncode, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def size(run: Path) -> int:
    """Bytes of the largest plain file of a run."""
    return max(path.lstat().st_size for path in run.rglob("*") if path.is_file() and not path.is_symlink())


def test_hostile_checkpoints_are_refused_at_once_and_named(step: Path, tmp_path: Path) -> None:
    assert len(CASES) >= 60
    made = build(step, tmp_path)
    fasta = step.parent.with_name("proteins.fasta")
    # The first is whole and signed anew: what is refused below is refused for its fault alone.
    resign(step)
    good, *found = answers([step.parent, *made.values()], fasta)
    assert [answer["class"] for answer in good] == [None, None]
    faults, worst_cpu_s, worst_bytes = [], 0.0, 0
    max_cpu_s = MAX_STARTS * start_of("import numpy")()
    for (name, run), (loaded, resumed) in zip(made.items(), found, strict=True):
        for kind, answer in (("read", loaded), ("resumed", resumed)):
            worst_cpu_s = max(worst_cpu_s, float(str(answer["cpu_s"])))
            over = int(str(answer["bytes"])) - size(run)
            worst_bytes = max(worst_bytes, over)
            if float(str(answer["cpu_s"])) > max_cpu_s or over > MAX_BYTES:
                faults.append(f"{name}, {kind}: {answer}")
            if kind == "read" and CASES[name][1]:
                continue
            classes = answer["class"] or []
            named = str(answer.get("file", "")).startswith(os.fspath(run))
            if "CheckpointError" not in str(classes) or not named or len(str(answer["text"])) > 600:
                faults.append(f"{name}, {kind}: {answer}")
    print(f"\n{len(CASES)} hostile checkpoints; worst {worst_cpu_s:.2f} s and {worst_bytes / 2**20:.0f} MiB over size")
    assert not faults, "\n".join(faults)


# What a manifest says about the training, which the reader in Rust leaves to those who continue or describe one.
OF_TRAINING = ("progress has", "options has", "manifest has progress", "manifest has options")
FACTS = ("threads", "torch", "version", "isa", "data_sha256", "validation_sha256")


def test_the_reader_in_rust_refuses_them_alone(step: Path, tmp_path: Path) -> None:
    resign(step)
    config = json.loads((step / "config.json").read_bytes())
    sizes = config["model_dim"], config["num_layers"]
    Network(step, *sizes)
    faults = []
    for name, run in build(step, tmp_path).items():
        try:
            Network(run / step.name, *sizes)
        except CheckpointError as error:
            named = os.fspath(error.filename).startswith(os.fspath(run))
            if not named or len(str(error)) > 600 or not str(error.strerror).isascii():
                faults.append(f"{name}: {error}")
        else:
            of_training = name.startswith((*OF_TRAINING, *(f"manifest has {fact} " for fact in FACTS)))
            if not of_training and not CASES[name][1]:
                faults.append(f"{name}: accepted")
    assert not faults, "\n".join(faults)
