"""A killed and resumed run is the uninterrupted run, bit for bit; a damaged checkpoint is named and passed over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config

from protperf.errors import CheckpointError, ConfigError
from protperf.lm.data.store import read_store, split
from protperf.lm.training import checkpoint, directory, tensor_file
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.run import load_run, train_run
from protperf.lm.training.trainer import Trainer

STEPS = 12
OPTIONS = {
    "steps": STEPS,
    "batch_tokens": 150,
    "accumulate": 2,
    "redraw_interval": 5,
    "checkpoint_every": 1,
    "log_every": 1,
    "validate": 0.1,
    "warmup": 3,
}


def trainer(run: Path, fasta: Path, **choices: object) -> Trainer:
    train, held = split(read_store(fasta), 0.1, 42)
    run.mkdir(exist_ok=True)
    config = small_config(dropout=0.1, **choices)
    return Trainer(run, config, TrainOptions(**OPTIONS), train, held)


def losses(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"].hex() for line in lines if "loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return tensor_file.read_tensors(run / f"step-{STEPS}" / "model.safetensors", None)


def stopped_after(one: Trainer, steps: int) -> None:
    """Train a few steps, then stop as a signal would."""

    def report(line: dict[str, object]) -> None:
        if line["step"] == steps:
            one.stop_signal = signal.SIGTERM

    one.fit(report)


@pytest.mark.parametrize("attention", ["relu", "softmax"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, fasta: Path, attention: str) -> None:
    golden = trainer(tmp_path / "golden", fasta, attention=attention)
    golden.fit(lambda line: None)
    # Mid-epoch, at the redraw, after it, and just before the end.
    for stop in (1, 5, 6, STEPS - 1):
        run = tmp_path / f"cut-{stop}"
        stopped_after(trainer(run, fasta, attention=attention), stop)
        again = trainer(run, fasta, attention=attention)
        again.restore(checkpoint.verify(run / f"step-{stop}"))
        again.fit(lambda line: None)
        assert losses(run) == losses(tmp_path / "golden")
        for name, tensor in weights(tmp_path / "golden").items():
            assert torch.equal(tensor, weights(run)[name]), name


@pytest.mark.parametrize("piece", ["moments", "step", "place", "directions"])
def test_leaving_out_one_piece_of_the_state_changes_the_run(tmp_path: Path, fasta: Path, piece: str) -> None:
    golden = trainer(tmp_path / "golden", fasta)
    golden.fit(lambda line: None)
    run = tmp_path / "cut"
    stopped_after(trainer(run, fasta), 6)
    again = trainer(run, fasta)
    again.restore(checkpoint.verify(run / "step-6"))
    if piece == "moments":
        for state in again.optimizer.state.values():
            state["exp_avg"].zero_()
    elif piece == "step":
        again.progress.step = 5
    elif piece == "place":
        again.progress.epoch, again.progress.batch = 0, 0
    else:
        again.network.redraw(0)
    again.fit(lambda line: None)
    assert losses(run) != losses(tmp_path / "golden")


def test_a_killed_process_resumes(tmp_path: Path, fasta: Path) -> None:
    command = [sys.executable, "-m", "protperf.lm.cli", "train", "--fasta", str(fasta), "-q", "-j", "1"]
    sized = tmp_path / "small.toml"
    sized.write_text("".join(f"{k} = {v}\n" for k, v in small_config().to_mapping().items() if isinstance(v, int)))
    choices = ["--size", str(sized), "--steps", "40", "--batch-tokens", "300", "--checkpoint-every", "1"]
    choices += ["--log-every", "1", "--validate", "0.1", "--dropout", "0.1"]
    subprocess.run([*command, "-o", str(tmp_path / "golden"), *choices], check=True)
    run = tmp_path / "killed"
    with subprocess.Popen([*command, "-o", str(run), *choices]) as process:
        deadline = time.monotonic() + 60
        while not (run / "step-7").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    subprocess.run([*command, "-o", str(run), "--resume"], check=True)
    assert losses(run) == losses(tmp_path / "golden")
    one, two = (tensor_file.read_tensors(p / "step-40" / "model.safetensors", None) for p in (run, tmp_path / "golden"))
    assert all(torch.equal(one[name], two[name]) for name in two)


@pytest.fixture
def saved(tmp_path: Path, fasta: Path) -> Path:
    """A run with its last two steps."""
    one = trainer(tmp_path / "run", fasta)
    stopped_after(one, 3)
    return tmp_path / "run"


def test_every_flipped_bit_is_found(saved: Path) -> None:
    newest = saved / f"step-{checkpoint.steps(saved)[0]}"
    checkpoint.verify(newest)
    rng = np.random.default_rng(0)
    names = [*checkpoint.FILES, checkpoint.MANIFEST]
    for trial in range(200):
        path = newest / names[trial % len(names)]
        good = path.read_bytes()
        data = bytearray(good)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        if path.name != checkpoint.MANIFEST:
            with pytest.raises(CheckpointError) as caught:
                checkpoint.verify(newest)
            assert newest.name in os.fspath(caught.value.filename)
        else:
            # A flip among the manifest's own facts may leave JSON that still says the same of every file.
            with contextlib.suppress(CheckpointError):
                assert checkpoint.verify(newest).number == int(newest.name.removeprefix("step-"))
        path.write_bytes(good)


@pytest.mark.parametrize("name", checkpoint.FILES)
def test_a_cut_file_is_found_and_named(saved: Path, name: str) -> None:
    newest = saved / f"step-{checkpoint.steps(saved)[0]}"
    good = (newest / name).read_bytes()
    for cut in (0, 1, 7, 8, 9, len(good) // 2, len(good) - 1):
        (newest / name).write_bytes(good[:cut])
        with pytest.raises(CheckpointError) as caught:
            checkpoint.verify(newest)
        assert os.fspath(caught.value.filename).endswith(name)


def test_resume_passes_over_a_damaged_step_and_names_it(saved: Path, fasta: Path) -> None:
    newest = checkpoint.steps(saved)[0]
    (saved / f"step-{newest}" / "trainer.safetensors").write_bytes(b"x")
    told: list[str] = []
    options = TrainOptions(**OPTIONS)
    train_run(fasta, saved, small_config(dropout=0.1), options, resume=True, warn=told.append)
    assert any(f"step-{newest}/trainer.safetensors" in text for text in told)
    (saved / f"step-{STEPS}" / "config.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError):
        load_run(saved)


def test_an_existing_run_is_neither_overwritten_nor_shared(saved: Path, fasta: Path) -> None:
    options = TrainOptions(**OPTIONS)
    with pytest.raises(ConfigError, match="--resume"):
        train_run(fasta, saved, small_config(), options)
    with directory.locked(saved), pytest.raises(ConfigError, match="another process"):
        train_run(fasta, saved, small_config(), options, force=True)
    other = fasta.with_name("other.fasta")
    other.write_text(fasta.read_text().replace("A", "C"))
    with pytest.raises(ConfigError, match="other sequences"):
        train_run(other, saved, small_config(dropout=0.1), options, resume=True)
