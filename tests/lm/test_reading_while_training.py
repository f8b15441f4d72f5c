"""A run directory can be read while it is trained: a step that is pruned meanwhile is an old step, not an error."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from commands import in_process
from training import small_options, synthetic, trainer

from protperf.errors import CheckpointError
from protperf.lm.engine import MASKED
from protperf.lm.loading import load_run
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.lm.storage import checkpoint, directory, tensor_file

STEPS = 8


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept each of its steps."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("library") / "run"
    one = trainer(run, synthetic(run.with_name("proteins.fasta")), small_options(steps=STEPS))
    with mock.patch.object(directory, "prune", return_value=[]):
        one.fit(lambda line: None)
    assert sorted(checkpoint.steps(run)) == list(range(1, STEPS + 1))
    return run


def train_on(library: Path, run: Path, steps: tuple[int, ...]) -> None:
    """What a training leaves once it has saved two more steps: those alone."""
    for number in steps:
        shutil.copytree(library / f"step-{number}", run / f".tmp-{number}" / f"step-{number}")
        (run / f".tmp-{number}" / f"step-{number}").rename(run / f"step-{number}")
    assert directory.prune(run, set(steps)) == []


def reading(run: Path, action: Callable[[], object], at: Callable[[int], bool], read: Callable[[], Any]) -> Any:
    """The result of `read`, and whether `action` ran: right before those files of the run are opened for which `at`."""
    real, count, busy, ran = os.open, 0, False, False

    def opening(path: Any, flags: int, *more: Any, **options: Any) -> int:
        nonlocal count, busy, ran
        if not busy and flags & os.O_ACCMODE == os.O_RDONLY and str(path).startswith(f"{run}/"):
            count += 1
            if at(count):
                busy = ran = True
                action()
                busy = False
        return real(path, flags, *more, **options)

    with mock.patch.object(os, "open", opening):
        return read(), ran


@pytest.mark.parametrize("command", ["load", "info"])
def test_a_step_pruned_at_any_moment_of_reading_is_replaced_by_the_next(
    command: str, library: Path, tmp_path: Path
) -> None:
    def read(run: Path) -> int:
        if command == "load":
            return load_run(run).step.number
        result = in_process("info", run)
        assert result.returncode == 0, result.stderr
        return int(result.stdout.split(b"\nstep ")[1].split()[0])

    found: list[int] = []
    while True:
        moment, run = len(found) + 1, tmp_path / f"run-{len(found)}"
        run.mkdir()
        train_on(library, run, (1, 2))
        number, ran = reading(run, partial(train_on, library, run, (3, 4)), moment.__eq__, partial(read, run))
        if not ran:
            break
        found.append(number)
    # Pruned before the first file is opened, a step is replaced; after the last one it was read to its end.
    assert set(found) <= {1, 2, 3, 4}
    assert len(found) >= 4
    assert found[0] in (3, 4)


def test_a_run_that_is_pruned_again_and_again_is_read(library: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    train_on(library, run, (1, 2))
    later = iter([(3, 4), (5, 6), (7, 8)])

    def action() -> None:
        if (steps := next(later, None)) is not None:
            train_on(library, run, steps)

    found, _ = reading(run, action, lambda count: count % 2 == 0, lambda: load_run(run))
    assert found.step.number in (7, 8)


def test_a_step_replaced_at_any_moment_of_reading_is_read_as_the_old_or_the_new(library: Path, tmp_path: Path) -> None:
    """A resumed run writes a step again that was found damaged, or that lies beyond the one it resumed from."""
    config = json.loads((library / "step-2" / "config.json").read_bytes())
    found = 0
    while True:
        run = tmp_path / f"run-{found}"
        run.mkdir()
        train_on(library, run, (2,))
        other = library / "step-3"
        model, trainer = (
            tensor_file.read_tensors(other / f"{name}.safetensors", None) for name in ("model", "trainer")
        )
        facts = {k: v for k, v in checkpoint.verify(run / "step-2").manifest.items() if k not in ("step", "files")}
        replace = partial(checkpoint.save, run, 2, config, model, trainer, lambda facts=facts: facts)
        loaded, ran = reading(run, replace, (found + 1).__eq__, partial(load_run, run))
        if not ran:
            break
        found += 1
        tokens = np.arange(len(model["embedding.weight"]), dtype=np.uint8)
        embedded = loaded.engine.hidden(tokens, np.array([0, len(tokens)]), MASKED, 0)
        predicted = loaded.engine.log_probs(tokens, np.array([0, len(tokens)]), MASKED)
        old = tensor_file.read_tensors(library / "step-2" / "model.safetensors", None)
        matches = []
        for tensors in (old, model):
            network = Network(loaded.engine.config, engine="torch")
            network.load_state_dict(tensors)
            theirs = TorchEngine(network.eval()).log_probs(tokens, np.array([0, len(tokens)]), MASKED)
            first = (tensors["embedding.weight"] + tensors["mode.weight"][MASKED]).numpy()
            matches.append(np.array_equal(embedded, first) and np.abs(predicted - theirs).max() < 1e-5)
        digests = [
            checkpoint.verify(folder / "step-2").manifest["files"]["model.safetensors"]["sha256"]
            for folder in (library, run)
        ]
        # What a table says about its model is about the weights that scored.
        assert loaded.step.manifest["files"]["model.safetensors"]["sha256"] == digests[matches.index(True)]
    assert found >= 4


def test_a_run_whose_only_step_is_about_to_be_replaced_is_waited_for(library: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    train_on(library, run, (2,))
    (run / "step-2").rename(run / ".old-2")
    with mock.patch.object(time, "sleep", side_effect=lambda _: (run / ".old-2").rename(run / "step-2")) as sleep:
        assert checkpoint.find(run).number == 2
    assert sleep.call_count == 1


def test_a_damaged_step_is_refused_at_once(library: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    train_on(library, run, (1, 2))
    (run / "step-2" / "config.json").unlink()
    with (
        mock.patch.object(checkpoint, "_described", wraps=checkpoint._described) as described,
        pytest.raises(CheckpointError, match=r"step-2/config\.json"),
    ):
        load_run(run)
    assert described.call_count == 1


def test_a_step_that_is_named_is_not_replaced_by_another(library: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    train_on(library, run, (1, 2))
    with pytest.raises(CheckpointError, match="step-2"):
        reading(run, lambda: train_on(library, run, (3, 4)), lambda count: count == 2, lambda: load_run(run / "step-2"))
