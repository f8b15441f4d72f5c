"""A request to train: the options that a command line or a program gives, as what `train_run` takes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.lm.device import chosen_device
from protperf.lm.model.config import MODEL_CHOICES, ModelConfig
from protperf.lm.options import Option, instance, pick
from protperf.lm.shared_options import RejectOptions
from protperf.lm.storage import builtin
from protperf.lm.training.options import DURATION_OPTIONS, RunOptions, TrainOptions
from protperf.lm.training.recipe import SCRATCH, default_steps, expectation, with_recipe
from protperf.lm.training.resume import Choices, new_choices, stored_choices
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.data.store import Paths, TokenStore
    from protperf.lm.training.forecast import Forecast
    from protperf.lm.training.run import Outcome

_KEPT = [*pick(RunOptions, "size"), *pick(TrainOptions), *pick(ModelConfig, *MODEL_CHOICES)]
"""Options that a run keeps, so that it can be resumed without naming them again."""
TRAINING_OPTIONS: list[Option] = [
    *_KEPT,
    *pick(RunOptions, "recipe", "seq_col", "resume", "force"),
    *pick(RejectOptions),
]
"""Every option of a training, as `protperf.lm.train` takes them."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The configuration and options of a run, the file to validate on if there is one, and how to start the run.

    Attributes:
        rejects: where the records are listed that the residue policy leaves out.
        by_data: the options that were named, by field, for what is chosen once the data is known; None for a run that
            is resumed, where nothing is.
    """

    config: ModelConfig
    options: TrainOptions
    validate: Path | None
    run: RunOptions
    by_data: Mapping[str, Any] | None = None
    rejects: RejectOptions | None = None

    def train(self, fasta: Paths, out: str | os.PathLike[str], device: str = "auto", **how: Any) -> Outcome:
        """Train as requested, on the device of a name; other arguments and errors are those of `train_run`."""
        # torch comes with it, and those who only read models need none.
        from protperf.lm.training.run import train_run

        how |= {**self._input(), "resume": self.run.resume, "force": self.run.force, "device": chosen_device(device)}
        how["rejects"] = self.rejects
        return train_run(fasta, out, self.config, self.options, **how)

    def forecast(self, fasta: Paths, out: str | os.PathLike[str], device: str = "auto", **how: Any) -> Forecast:
        """What the training would take; other arguments and errors are those of `forecast`."""
        from protperf.lm.training.forecast import forecast

        how |= {**self._input(), "device": chosen_device(device)}
        return forecast(fasta, out, self.config, self.options, **how)

    def _input(self) -> dict[str, Any]:
        choose = None if self.by_data is None else self._choose
        return {"validate": self.validate, "seq_col": self.run.seq_col, "choose": choose}

    def _choose(self, train: TokenStore, options: TrainOptions, warn: Callable[[str], None]) -> Choices:
        """The configuration and options that suit what is trained on; what is chosen is said with its reason."""
        recipe, given = self.run.recipe, self.by_data or {}
        if recipe == "auto":
            from protperf.lm.data.kind import kind_of

            kind = kind_of(train)
            recipe = kind.name
            if recipe != "plain":
                text = f"note: recipe {recipe}, because {kind.why} ({expectation(recipe)})"
                warn(Message("{text}; {plain} keeps the defaults", text=text, plain=Argument("recipe", "plain")))
        given = with_recipe(recipe, given, train.num_residues)
        if not _says_how_long(given):
            steps = default_steps(recipe, train.num_residues / (options.batch_tokens * options.accumulate))
            given = {**given, "steps": steps}
            ends = {name: Argument(name) for name in ("steps", "epochs", "time")}
            warn(
                Message(
                    "note: trains for {count:,} steps; set {time}, {epochs} or {steps} for another length",
                    count=steps,
                    **ends,
                )
            )
        config, chosen = new_choices(given)
        if chosen.init is not None and chosen.init.startswith(builtin.PREFIX):
            text = "note: starts with the weights of {model}; {scratch} starts with random ones"
            warn(Message(text, model=chosen.init, scratch=Argument("init", SCRATCH)))
        return config, dataclasses.replace(chosen, validate=options.validate)


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
    stored = stored_choices(out, kept, run.force) if run.resume else None
    provisional = kept if _says_how_long(kept) else {**kept, "steps": default_steps(run.recipe)}
    config, options = stored or new_choices(provisional)
    by_data = None if stored is not None else kept
    validate = file if isinstance(file, Path) else None
    return TrainRequest(config, options, validate, run, by_data, instance(RejectOptions, given))


def _says_how_long(given: Mapping[str, Any]) -> bool:
    return any(given.get(name) is not None for name in DURATION_OPTIONS)
