"""What a run was asked to do, as its checkpoints store it, and the tensors that it has. torch is not needed here."""

from __future__ import annotations

from protperf.lm.model.config import ModelConfig
from protperf.lm.storage import manifest
from protperf.lm.storage.checkpoint import Step
from protperf.lm.storage.expected import ExpectedTensors
from protperf.lm.training.options import TrainOptions


def read_options(step: Step) -> TrainOptions:
    """The options of the run.

    Raises:
        CheckpointError: they are missing, or a value is out of range.
    """
    return manifest.read_section(step, "options", TrainOptions.from_mapping)


def expected_tensors(config: ModelConfig, options: TrainOptions) -> ExpectedTensors:
    """The tensors that a step of a run with these options holds."""
    return ExpectedTensors(config, options.optimizer, averages=options.ema > 0, lora=options.lora)
