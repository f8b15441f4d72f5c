"""What may be said when a run is resumed: the same again, a new end, how often it writes. The rest is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import small_config, write_proteins
from machine import wait_until
from training import final_digests, metrics, small_options
from warm import Warm

from protperf.errors import ConfigError
from protperf.lm import train
from protperf.lm.storage import checkpoint
from protperf.lm.storage.manifest import read_config
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.resume import stored_choices
from protperf.lm.training.run import train_run

STARTED = ["--steps", 4, "--batch-tokens", 150, "--accumulate", 2, "--warmup", 1, "--lr", 0.002, "--log-every", 1]
STARTED += ["--validate", 0.1, "--dropout", 0.1, "--objective", "causal", "--seed", 7, "--checkpoint-every", 1]


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as server:
        yield server


@pytest.fixture(scope="module")
def trained(warm: Warm, tmp_path_factory: pytest.TempPathFactory, small_size: Path) -> Path:
    """A finished run of four steps; nothing changes it."""
    folder = tmp_path_factory.mktemp("trained")
    fasta = write_proteins(folder / "proteins.fasta")
    status, message = warm.command(
        folder / "errors", "train", "--fasta", fasta, "-o", folder / "run", "--size", small_size, *STARTED
    )
    assert status == 0, message
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "1e-4"], "--lr contradicts the run, whose lr is 0.002 and not 0.0001"),
        (["--batch-tokens", "4096"], "--batch-tokens contradicts the run"),
        (["--accumulate", "1"], "--accumulate contradicts"),
        (["--crop", "100"], "--crop contradicts"),
        (["--warmup", "9"], "--warmup contradicts"),
        (["--clip", "2"], "--clip contradicts"),
        (["--weight-decay", "0"], "--weight-decay contradicts"),
        (["--dropout", "0"], "--dropout contradicts"),
        (["--redraw-interval", "5"], "--redraw-interval contradicts"),
        (["--objective", "both"], "--objective contradicts the run, whose objective is 'causal' and not 'both'"),
        (["--attention", "softmax"], "--attention contradicts"),
        (["--num-features", "16"], "--num-features contradicts"),
        (["--size", "tiny"], "--size contradicts the run"),
        (["--seed", "8"], "--seed contradicts"),
        (["--residues", "strict"], "--residues contradicts"),
        (["--validate", "0.2"], "--validate contradicts"),
        (["--validate", "FASTA"], "which validates on a fraction of 0.1 of the sequences"),
        (["--steps", "3"], "--steps 3 is behind the run, which is at 4"),
        (["--steps", "4", "--epochs", "2"], "exactly one of --steps, --epochs and --time"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_contradicts_the_run_is_refused_by_name(
    words: list[str], message: str, run: Path, fasta: Path, warm: Warm, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    named = [str(fasta) if word == "FASTA" else word for word in words]
    status, errors = warm.command(tmp_path / "errors", "train", "--fasta", fasta, "-o", run, "--resume", *named)
    assert status == 2, errors
    assert errors.startswith("protperf: error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_command_that_started_a_run_resumes_it(
    run: Path, fasta: Path, small_size: Path, warm: Warm, tmp_path: Path
) -> None:
    words = ["train", "--fasta", fasta, "-o", run, "--size", small_size, *STARTED, "--resume"]
    status, message = warm.command(tmp_path / "errors", *words)
    assert status == 0
    assert message.splitlines() == [
        f"protperf: note: {run}: is finished; a larger --steps, --epochs, --time or --patience trains on",
        f"protperf: {run}: 4 steps",
    ]


@pytest.mark.parametrize("words", [["--steps", "6"], ["--epochs", "1.5"], ["--time", "1h"]], ids=" ".join)
def test_a_new_end_trains_on_and_says_so(words: list[str], run: Path, fasta: Path, warm: Warm, tmp_path: Path) -> None:
    command = ["train", "--fasta", fasta, "-o", run, "--resume", "--log-every", "2", *words]
    process = warm.start({"words": [str(word) for word in command], "errors": tmp_path / "errors"})
    if words[0] == "--time":
        # An hour ends with the first step that is logged: how many a shorter time takes is the machine's business.
        assert wait_until(lambda: 6 in logged_steps(run))
        os.kill(process, signal.SIGINT)
    assert warm.wait() == (130 if words[0] == "--time" else 0)
    message = (tmp_path / "errors").read_text()
    assert f"note: {run}: ends at {words[0]} " in message
    assert " instead of --steps 4; the learning rate follows the new end" in message
    steps = logged_steps(run)
    assert steps[:5] == [1, 2, 3, 4, 6]
    assert words[0] != "--steps" or steps[-1] == 6


def logged_steps(run: Path) -> list[int]:
    """Steps whose loss stands in the metrics, which may just be written."""
    text = (run / "metrics.jsonl").read_text()
    return [line["step"] for line in map(json.loads, text[: text.rfind("\n") + 1].splitlines()) if "loss" in line]


def choices(run: Path, **given: Any) -> TrainOptions:
    return stored_choices(run, given)[1]


def test_an_extended_run_equals_one_that_was_extended_and_killed(run: Path, fasta: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    for place, stops in ((run, ()), (other, (5, 7))):
        for stop in (*stops, None):
            config, options = stored_choices(place, {"steps": 9})
            one = trainer_of(place, fasta, config, options)
            one.fit(lambda line, one=one, stop=stop: setattr(one, "stop_signal", 15 if line["step"] == stop else None))
    assert metrics(run) == metrics(other)
    assert final_digests(run) == final_digests(other)


def trainer_of(run: Path, fasta: Path, config: Any, options: TrainOptions) -> Any:
    from protperf.lm.data.hold_out import hold_out
    from protperf.lm.data.store import read_store
    from protperf.lm.training.trainer import Trainer

    parts = hold_out(read_store(fasta), options.validate or 0.0, options.seed, options.hold_out)
    one = Trainer(run, config, options, parts.train, parts.held)
    one.restore(checkpoint.verify(run / f"step-{checkpoint.steps(run)[0]}"))
    return one


def test_other_sequences_are_refused_and_another_machine_is_reported(tmp_path: Path, fasta: Path) -> None:
    run, held = tmp_path / "run", tmp_path / "held.fasta"
    held.write_text(">h\nMKVLAWAG\n>i\nMKWCDEFG\n")
    message: list[str] = []
    train_run(fasta, run, small_config(), small_options(steps=2), validate=held, warn=message.append)
    config, options = stored_choices(run, {"steps": 3})

    def again(sequences: Path, validate: Path | None = held) -> None:
        train_run(sequences, run, config, options, validate=validate, resume=True, warn=message.append)

    with pytest.raises(ConfigError, match="name it with validate"):
        again(fasta, None)
    changed = tmp_path / "changed.fasta"
    changed.write_text(fasta.read_text().replace("AC", "CA", 1))
    with pytest.raises(ConfigError, match="trained on other sequences"):
        again(changed)
    with pytest.raises(ConfigError, match="validated on other sequences"):
        again(fasta, changed)
    assert message == []
    import torch

    torch.set_num_threads(2)
    again(fasta)
    assert f"warning: {run}/step-2: threads 1 then, 2 now: the continued run may differ in the last bits" in message


def test_the_python_interface_resumes_with_the_options_of_the_run(
    tmp_path: Path, fasta: Path, small_size: Path
) -> None:
    given = {"batch_tokens": 150, "lr": 2e-3, "dropout": 0.1, "validate": 0.1, "objective": "masked", "seed": 3}
    train(fasta, tmp_path / "run", size=str(small_size), steps=3, **given)  # type: ignore[arg-type]
    assert train(fasta, tmp_path / "run", steps=5, resume=True).step <= 5
    newest = checkpoint.verify(tmp_path / "run" / "step-5")
    assert newest.manifest["options"] == {**choices(tmp_path / "run").to_mapping(), "steps": 5}
    assert (choices(tmp_path / "run").lr, choices(tmp_path / "run").seed) == (2e-3, 3)
    with pytest.raises(ConfigError, match=r"^lr contradicts"):
        train(fasta, tmp_path / "run", steps=6, lr=1e-4, resume=True)
    with pytest.raises(ConfigError, match="unknown option 'stepps'"):
        train(fasta, tmp_path / "new", stepps=6)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("place", ["missing", "empty", "removed"])
def test_resuming_starts_a_run_that_is_not_there(
    place: str, run: Path, fasta: Path, small_size: Path, warm: Warm, tmp_path: Path
) -> None:
    """A job that may be requeued types one command, the first time too."""
    new = tmp_path / place
    if place != "missing":
        new.mkdir()
    if place == "removed":
        (new / ".tmp-1").mkdir()
        (new / ".lock").touch()
    words = ["train", "--fasta", fasta, "-o", new, "--size", small_size, *STARTED, "--resume"]
    status, message = warm.command(tmp_path / "errors", *words)
    assert status == 0, message
    assert f"note: {new}: has no checkpoint yet; the run starts from the beginning" in message
    assert metrics(new) == metrics(run)
    assert final_digests(new) == final_digests(run)
    status, message = warm.command(tmp_path / "errors", *words)
    assert status == 0
    assert f"note: {new}: is finished" in message
    assert final_digests(new) == final_digests(run)


def test_a_run_killed_before_its_first_checkpoint_is_resumed_with_its_options(
    run: Path, fasta: Path, small_size: Path, warm: Warm, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    job = {"config": checkpoint.read(run, read_config).to_mapping(), "options": choices(run).to_mapping()}
    assert warm.run({**job, "run": killed, "fasta": fasta, "resume": False, "kill_at": 1}) == -signal.SIGKILL
    assert sorted(path.name for path in killed.iterdir()) == [".lock", "config.toml"]
    refused = ["train", "--fasta", fasta, "-o", killed, "--size", small_size, *STARTED]
    assert warm.command(tmp_path / "errors", *refused)[0] == 2
    # None of its options is named again, not even how long it is to train.
    status, message = warm.command(tmp_path / "errors", "train", "--fasta", fasta, "-o", killed, "--resume")
    assert status == 0, message
    assert metrics(killed) == metrics(run)
    assert final_digests(killed) == final_digests(run)


def test_what_was_never_trained_may_start_with_other_options(
    run: Path, fasta: Path, warm: Warm, tmp_path: Path
) -> None:
    for step in run.glob("step-*"):
        shutil.rmtree(step)
    words = ["train", "--fasta", fasta, "-o", run, "--resume", "--epochs", "1", "--lr", "1e-4"]
    assert warm.command(tmp_path / "errors", *words)[0] == 0
    options = choices(run)
    assert (options.steps, options.epochs, options.lr, options.accumulate) == (None, 1.0, 1e-4, 2)


@pytest.mark.parametrize("name", ["notes.txt", "config.toml", "metrics.jsonl", "step-7"])
def test_resuming_takes_no_directory_that_holds_other_files(name: str, fasta: Path, warm: Warm, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    if name == "step-7":
        (other / name).mkdir()
        (other / name / "thesis.tex").write_text("mine")
    else:
        (other / name).write_text("mine")
    before = snapshot(other)
    words = ["train", "--fasta", fasta, "-o", other, "--resume", "--steps", "1"]
    status, message = warm.command(tmp_path / "errors", *words)
    assert status in (2, 3), message
    assert message.splitlines()[-1].startswith(f"protperf: error: {other}")
    assert {path: data for path, data in snapshot(other).items() if path.name != ".lock"} == before
