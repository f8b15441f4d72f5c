"""A request to train: the options that a command line or a program gives, as what `train_run` takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.lm.device import torch_device
from protperf.lm.model.config import MODEL_CHOICES, ModelConfig
from protperf.lm.options import Option, pick
from protperf.lm.training.options import RunOptions, TrainOptions
from protperf.lm.training.recipe import with_recipe
from protperf.lm.training.resume import new_choices, stored_choices

if TYPE_CHECKING:
    from protperf.lm.training.run import Outcome, Paths

_KEPT = [*pick(RunOptions, "size"), *pick(TrainOptions), *pick(ModelConfig, *MODEL_CHOICES)]
"""Options that a run keeps, so that it can be resumed without naming them again."""
TRAINING_OPTIONS: list[Option] = [*_KEPT, *pick(RunOptions, "recipe", "seq_col", "resume", "force")]
"""Every option of a training, as `protperf.lm.train` takes them."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The configuration and options of a run, the file to validate on if there is one, and how to start the run."""

    config: ModelConfig
    options: TrainOptions
    validate: Path | None
    run: RunOptions

    def train(self, fasta: Paths, out: str | os.PathLike[str], device: str = "auto", **how: Any) -> Outcome:
        """Train as requested, on the device of a name; other arguments and errors are those of `train_run`."""
        # torch comes with it, and those who only read models need none.
        from protperf.lm.training.run import train_run

        run = self.run
        start: dict[str, Any] = {
            "validate": self.validate,
            "seq_col": run.seq_col,
            "resume": run.resume,
            "force": run.force,
        }
        return train_run(fasta, out, self.config, self.options, **start, **how, device=torch_device(device))


def read_request(out: str | os.PathLike[str], given: Mapping[str, Any]) -> TrainRequest:
    """The request that options make, for the run directory `out`.

    Args:
        given: by field, the options that were named; others may be among them.

    Raises:
        ConfigError: options that are out of range, exclude each other or contradict the run that is resumed;
        CheckpointError: the run cannot be resumed.
    """
    run = RunOptions(**{each.name: given[each.name] for each in pick(RunOptions) if each.name in given})
    kept = with_recipe(run.recipe, {each.name: given[each.name] for each in _KEPT if each.name in given})
    file = kept.get("validate")
    if isinstance(file, Path):
        kept["validate"] = None
    config, options = stored_choices(out, kept, run.force) if run.resume else new_choices(kept)
    return TrainRequest(config, options, file if isinstance(file, Path) else None, run)
