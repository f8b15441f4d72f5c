"""Exactly what is needed is stored: leaving out any one piece of the state makes another run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training import small_options, synthetic, trainer

from protperf.lm.storage import checkpoint
from protperf.lm.training.feed import Feed
from protperf.lm.training.optimizer import Optimizer
from protperf.lm.training.options import DURATION_OPTIONS, TrainOptions
from protperf.lm.training.progress import Progress
from protperf.lm.training.resume import LOGGING_OPTIONS
from protperf.lm.training.trainer import Trainer

CUT, LEFT = 6, 2
"""The step resumed from, past the redraw at 5, and the steps compared after it."""
OBSERVED = {
    "tokens": "the metrics count on",
    "wall_s": "the metrics count on",
    "best_loss": "a later step must beat it to be the best",
    "best_step": "reading commands take it",
    "stale": "patience ends a run by it",
}
"""Pieces of the progress that no loss depends on, and why they are stored."""
OTHER: dict[str, Any] = {
    "batch_tokens": 100,
    "accumulate": 1,
    "crop": 20,
    "lr": 1e-4,
    "warmup": 0,
    "clip": 1e-3,
    "weight_decay": 0.5,
    "redraw_interval": 2,
    "seed": 43,
    "engine": "torch",
    "optimizer": "adamw",
    "starts": "varied",
    "weights": "relatives",
    "precision": "bf16",
    "schedule": "constant",
}
"""Another value of each option on which the losses depend once the data is read."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A step of a timed run whose number of steps is known, and its sequences."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("state")
    fasta = synthetic(folder / "proteins.fasta")
    one = trainer(folder / "run", fasta, timed())
    one.loop.progress.total_steps = 12
    one.fit(lambda line: setattr(one, "stop_signal", 15 if line["step"] == CUT else None))
    return folder / "run" / f"step-{CUT}", fasta


def timed() -> TrainOptions:
    # Only the progress holds the number of steps of a timed run. The clip is wide, so that it does not hide the scale.
    return small_options(steps=None, time_s=1e6, clip=2.0)


def restored(saved: tuple[Path, Path]) -> Trainer:
    step, fasta = saved
    one = trainer(step.parent, fasta, timed())
    one.restore(checkpoint.verify(step))
    return one


def outcome(one: Trainer) -> list[str]:
    """Losses of the next steps, and every weight after them."""
    found = [one.loop.step()[0].hex() for _ in range(LEFT)]
    return found + [tensor.numpy().tobytes().hex() for tensor in one.loop.network.state_dict().values()]


def pieces(saved: tuple[Path, Path]) -> Iterator[tuple[str, Callable[[Trainer], None]]]:
    """Each piece by name, and a function that makes a trainer look as if it had not restored that piece."""
    new = trainer(saved[0].parent, saved[1], timed())
    for name, tensor in new.loop.network.state_dict().items():
        yield f"model {name}", lambda one, n=name, t=tensor: one.loop.network.state_dict()[n].copy_(t)  # type: ignore[misc]
    for name, parameter in new.loop.network.named_parameters():
        for key, value in new.loop.optimizer.state[parameter].items():

            def forget(one: Trainer, name: str = name, key: str = key, value: torch.Tensor = value) -> None:
                one.loop.optimizer.state[one.loop.network.get_parameter(name)][key].copy_(value)

            yield f"trainer {name}.{key}", forget
    for field in dataclasses.fields(Progress):
        if field.name not in OBSERVED:
            value = getattr(new.loop.progress, field.name)
            yield f"progress {field.name}", lambda one, n=field.name, v=value: setattr(one.loop.progress, n, v)  # type: ignore[misc]
    for name, value in OTHER.items():

        def choose(one: Trainer, name: str = name, value: object = value) -> None:
            loop = one.loop
            loop.options = dataclasses.replace(loop.options, **{name: value})
            loop.feed = Feed(loop.feed._store, loop.options, one.config.objective, one.device)
            if name == "weight_decay":
                loop.optimizer.weight_decay = value
            if name == "clip":
                loop.optimizer.clip_norm = value
            if name == "optimizer":
                loop.optimizer = Optimizer(loop.network.named_parameters(), loop.options)
            if name == "engine":
                loop.network.engine = value
            if name == "precision":
                loop.network.precision = value

        yield f"options {name}", choose


def test_leaving_out_any_piece_of_the_state_changes_the_run(saved: tuple[Path, Path]) -> None:
    golden = outcome(restored(saved))
    assert outcome(restored(saved)) == golden
    tried, unused = [], []
    for name, forget in pieces(saved):
        one = restored(saved)
        forget(one)
        tried.append(name)
        if outcome(one) == golden:
            unused.append(name)
    print(f"\n{len(tried)} pieces left out one by one: {', '.join(tried)}")
    assert not unused
    stored = {*checkpoint.verify(saved[0]).manifest["progress"]}
    assert stored == {name.split()[1] for name in tried if name.startswith("progress")} | set(OBSERVED)


def test_every_option_that_decides_a_run_is_stored_and_tried() -> None:
    # These decide which sequences are read, so that a change is refused as other data.
    of_the_data = {"validate", "residues", "hold_out"}
    # No loss of a step depends on the average; test_average.py resumes it. The first weights are in a checkpoint.
    # test_low_rank.py resumes adapters, which need a run to start with; test_training_on_gpu.py computes on a GPU.
    of_answers = {"ema", "init", "lora", "attention_backend"}
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    assert names == set(OTHER) | set(DURATION_OPTIONS) | set(LOGGING_OPTIONS) | of_the_data | of_answers
    assert set(TrainOptions(steps=1).to_mapping()) == names


@pytest.mark.parametrize("name", OBSERVED)
def test_what_no_loss_depends_on_is_seen_elsewhere(name: str, saved: tuple[Path, Path], tmp_path: Path) -> None:
    def left(forget: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        one = restored(saved)
        one.run = tmp_path / str(forget)
        one.run.mkdir()
        one.loop.clock.resume(one.loop.progress.wall_s + 100)
        one.loop.progress.best_loss, one.loop.progress.best_step = -1.0, 3
        one.loop.progress.stale = 2
        if forget:
            setattr(one.loop.progress, name, getattr(Progress(), name))
            if name == "wall_s":
                one.loop.clock.resume(0.0)
        lines: list[dict[str, Any]] = []

        def stop(line: dict[str, Any]) -> None:
            lines.append(line)
            one.stop_signal = 15

        one.fit(stop)
        (step,) = map(checkpoint.verify, one.run.glob("step-*"))
        return lines[0], step.manifest["progress"]

    (line, progress), (other_line, other) = left(False), left(True)
    assert progress[name] != other[name]
    if name in line:
        assert line[name] > other_line[name] if name == "tokens" else line[name] >= other_line[name] + 99
    else:
        assert math.isclose(line["loss"], other_line["loss"], rel_tol=0)
