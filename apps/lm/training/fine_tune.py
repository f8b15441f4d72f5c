"""Start a run with the weights of another one: the same network, tokens and random directions, other data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from protperf.errors import ConfigError
from protperf.lm.model.config import MODEL_CHOICES, ModelConfig
from protperf.lm.storage import checkpoint, manifest, tensor_file
from protperf.lm.storage.expected import ExpectedTensors
from protperf.lm.storage.plain_file import broken
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.training.trainer import Trainer

_CHANGEABLE = ("objective", "directions", "dropout")
"""What a run may choose otherwise: none of these is the shape of a tensor or a random direction."""


def inherited_config(init: str, given: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a run that starts with the weights of the checkpoint `init`.

    Args:
        given: by name, the choices of the new run: fields of `ModelConfig`, and `size`.

    Raises:
        ConfigError: a choice that would be another network; MissingFileError, CheckpointError: as for `load_run`.
    """
    config = checkpoint.read(init, manifest.read_config)
    fixed = {name: getattr(config, name) for name in (*MODEL_CHOICES, "seed")}
    if "size" in given and (sized := ModelConfig.from_size(given["size"], **fixed)) != config:
        values = zip(sized.to_mapping().items(), config.to_mapping().values(), strict=True)
        name, asked, has = next((name, asked, has) for (name, asked), has in values if asked != has)
        raise _contradiction("size", given["size"], init, f"has {name} {has} and not {asked}")
    for name in MODEL_CHOICES:
        if name not in _CHANGEABLE and given.get(name, fixed[name]) != fixed[name]:
            raise _contradiction(name, given[name], init, f"has {fixed[name]}")
    chosen = {name: given[name] for name in _CHANGEABLE if name in given}
    return ModelConfig.from_mapping({**config.to_mapping(), **chosen})


def _contradiction(name: str, value: Any, init: str, has: str) -> ConfigError:
    text = "{option} contradicts {init} {path}, which {has}; leave it out"
    return ConfigError(Message(text, option=Argument(name, value), init=Argument("init"), path=init, has=has))


def take_weights(trainer: Trainer, init: str) -> str:
    """Give a new run the weights and random directions of a checkpoint; returns which one that is, in words.

    Raises:
        CheckpointError: a damaged file, or one of another network.
    """
    expected = ExpectedTensors(trainer.config).network

    def read(step: checkpoint.Step) -> tuple[checkpoint.Step, Any]:
        path = step.path / "model.safetensors"
        if (name := tensor_file.first_not_finite(path)) is not None:
            raise broken(path, f"tensor {name} holds a number that is not finite")
        return step, tensor_file.read_tensors(path, expected)

    step, weights = checkpoint.read(init, read)
    trainer.loop.network.load_state_dict(weights)
    trainer.loop.optimizer.restart()
    if trainer.loop.average is not None:
        trainer.loop.average.restart()
    digest = step.manifest["files"]["model.safetensors"]["sha256"]
    adapted = f", adapted with rank {trainer.options.lora}" if trainer.options.lora else ""
    return f"{init}, step {step.number}, model SHA-256 {digest}{adapted}"
