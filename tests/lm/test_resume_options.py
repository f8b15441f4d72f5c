"""What may be said when a run is resumed: the same again, a new end, how often it writes. The rest is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import small_config
from training import final_digests, metrics, small_options, trainer
from warm import Warm

from protperf.errors import CheckpointError, ConfigError
from protperf.lm import train
from protperf.lm.storage import checkpoint
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.run import new_choices, stored_choices, train_run

BEGUN = ["--steps", 4, "--batch-tokens", 150, "--accumulate", 2, "--warmup", 1, "--lr", 0.002, "--log-every", 1]
BEGUN += ["--validate", 0.1, "--dropout", 0.1, "--objective", "causal", "--seed", 7, "--checkpoint-every", 1]


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as server:
        yield server


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    sizes = {name: value for name, value in small_config().to_mapping().items() if type(value) is int}
    sizes.pop("seed")
    path = tmp_path / "small.toml"
    path.write_text("".join(f"{name} = {value}\n" for name, value in sizes.items()))
    return path


@pytest.fixture
def run(warm: Warm, tmp_path: Path, fasta: Path, recipe: Path) -> Path:
    """A finished run of four steps."""
    words = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--size", recipe, *BEGUN]
    status, told = warm.command(tmp_path / "errors", *words)
    assert status == 0, told
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("words", "told"),
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
    words: list[str], told: str, run: Path, fasta: Path, warm: Warm, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    named = [str(fasta) if word == "FASTA" else word for word in words]
    status, errors = warm.command(tmp_path / "errors", "train", "--fasta", fasta, "-o", run, "--resume", *named)
    assert status == 2, errors
    assert errors.startswith("protperf: error: ")
    assert told in errors
    assert len(errors.splitlines()) == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_command_that_began_a_run_resumes_it(
    run: Path, fasta: Path, recipe: Path, warm: Warm, tmp_path: Path
) -> None:
    words = ["train", "--fasta", fasta, "-o", run, "--size", recipe, *BEGUN, "--resume"]
    status, told = warm.command(tmp_path / "errors", *words)
    assert status == 0
    assert told.splitlines() == [
        f"protperf: note: {run}: is finished; a larger --steps, --epochs or --time trains on",
        f"protperf: {run}: 4 steps",
    ]


@pytest.mark.parametrize("words", [["--steps", "6"], ["--epochs", "1.5"], ["--time", "2s"]], ids=" ".join)
def test_a_new_end_trains_on_and_says_so(words: list[str], run: Path, fasta: Path, warm: Warm, tmp_path: Path) -> None:
    status, told = warm.command(
        tmp_path / "errors", "train", "--fasta", fasta, "-o", run, "--resume", "--log-every", "2", *words
    )
    assert status == 0
    assert f"note: {run}: ends at {words[0]} " in told
    assert " instead of --steps 4; the learning rate follows the new end" in told
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps[:4] == [1, 2, 3, 4]
    assert steps[4] == 6
    assert words[0] != "--steps" or steps[-1] == 6


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
    from protperf.lm.data.store import read_store, split
    from protperf.lm.training.trainer import Trainer

    one = Trainer(run, config, options, *split(read_store(fasta), options.validate or 0.0, options.seed))
    one.restore(checkpoint.verify(run / f"step-{checkpoint.steps(run)[0]}"))
    return one


def test_other_sequences_are_refused_and_another_machine_is_told(tmp_path: Path, fasta: Path) -> None:
    run, held = tmp_path / "run", tmp_path / "held.fasta"
    held.write_text(">h\nMKVLAWAG\n>i\nMKWCDEFG\n")
    told: list[str] = []
    train_run(fasta, run, small_config(), small_options(steps=2), validate=held, warn=told.append)
    config, options = stored_choices(run, {"steps": 3})

    def again(sequences: Path, validate: Path | None = held) -> None:
        train_run(sequences, run, config, options, validate=validate, resume=True, warn=told.append)

    with pytest.raises(ConfigError, match="name it with --validate"):
        again(fasta, None)
    changed = tmp_path / "changed.fasta"
    changed.write_text(fasta.read_text().replace("AC", "CA", 1))
    with pytest.raises(ConfigError, match="trained on other sequences"):
        again(changed)
    with pytest.raises(ConfigError, match="validated on other sequences"):
        again(fasta, changed)
    assert told == []
    import torch

    torch.set_num_threads(2)
    again(fasta)
    assert f"warning: {run}/step-2: threads 1 then, 2 now: the continued run may differ in the last bits" in told


def test_the_python_interface_resumes_with_the_options_of_the_run(tmp_path: Path, fasta: Path, recipe: Path) -> None:
    given = {"batch_tokens": 150, "lr": 2e-3, "dropout": 0.1, "validate": 0.1, "objective": "masked", "seed": 3}
    train(fasta, tmp_path / "run", size=str(recipe), steps=3, **given)  # type: ignore[arg-type]
    assert train(fasta, tmp_path / "run", steps=5, resume=True).step <= 5
    newest = checkpoint.verify(tmp_path / "run" / "step-5")
    assert newest.manifest["options"] == {**choices(tmp_path / "run").to_mapping(), "steps": 5}
    assert (choices(tmp_path / "run").lr, choices(tmp_path / "run").seed) == (2e-3, 3)
    with pytest.raises(ConfigError, match="--lr contradicts"):
        train(fasta, tmp_path / "run", steps=6, lr=1e-4, resume=True)
    with pytest.raises(ConfigError, match="unknown option 'stepps'"):
        train(fasta, tmp_path / "new", stepps=6)


def test_defaults_of_the_command_are_those_of_the_options() -> None:
    import inspect

    from protperf.lm.cli.train import run

    shown = {name: parameter.default for name, parameter in inspect.signature(run).parameters.items()}
    config, options = new_choices({"steps": 1})
    values = {**config.to_mapping(), **options.to_mapping(), "validate": str(options.validate)}
    for name in shown.keys() & values.keys() - {"steps", "num_features"}:
        assert shown[name] == values[name], name


def test_nothing_to_resume_is_told(tmp_path: Path, fasta: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        stored_choices(tmp_path / "run", {})
    one = trainer(tmp_path / "run", fasta)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train_run(fasta, tmp_path / "run", one.config, one.options, resume=True)
