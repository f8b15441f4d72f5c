"""Sizes and choices of a network: frozen, checked, read from TOML or JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protperf import feature_maps, norms, samplers
from protperf.errors import ConfigError
from protperf.lm.options import REQUIRED, check, from_mapping, option
from protperf.message import Argument, Message

SIZES = ("nano", "tiny", "small", "base")
FEATURE_MAP = {"softmax": "positive"}
"""Other names of feature maps: what the map estimates."""
ATTENTIONS = ("relu", *FEATURE_MAP, "exact", *(name for name in feature_maps() if name != "relu"))
"""Every feature map of the registry, their other names, and `exact`; the default first."""
OBJECTIVES = ("masked", "causal", "both")
DIRECTIONS = ("forward", "both")
MODEL_CHOICES = ("attention", "objective", "directions", "num_features", "sampler", "norm", "dropout")
"""Fields of `ModelConfig` that are chosen for a run; its size decides the others."""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """What decides the shapes of a network and what it was trained to predict.

    `attention` is a feature map (FAVOR+, linear in length), `softmax` (another name of the map `positive`) or `exact`
    (softmax, quadratic). `objective` is `masked`, `causal` or `both`. `directions` says which causal readings were
    trained: `forward`, or `both`, where the backward reading of a protein is its framed tokens reversed, EOS first and
    BOS last, so that the first token says which way it goes. `seed` draws weights and random directions, the latter by
    `sampler` and `norm` of `protperf.draw_projection`.
    """

    num_layers: int = option(REQUIRED, "Blocks of attention and feed-forward layer.", least=1, most=256)
    model_dim: int = option(REQUIRED, "Width of the residual stream.", least=1, most=16384)
    num_heads: int = option(REQUIRED, "Heads per layer.", least=1, most=256)
    head_dim: int = option(REQUIRED, "Width of a head; even.", least=1, most=1024)
    ffn_dim: int = option(REQUIRED, "Width of the feed-forward layer.", least=1, most=65536)
    num_features: int = option(REQUIRED, "Random features per head.", least=1, most=4096, shown_default="set by --size")
    attention: str = option(
        "relu", "A feature map, linear in length: relu, softmax or another; or exact.", choices=ATTENTIONS
    )
    objective: str = option("both", "What to predict: masked, causal or both.", choices=OBJECTIVES)
    dropout: float = option(0.0, "Probability of dropout.", least=0.0, below=1.0)
    seed: int = option(42, "Seed of the weights and the random features.", least=0, most=2**63 - 1)
    sampler: str = option("orthogonal", "How random features are drawn.", choices=samplers())
    norm: str = option("chi", "Norms of the random features.", choices=norms())
    directions: str = option(
        "forward", "Ways to read a sequence for the causal objective: forward, or both.", choices=DIRECTIONS
    )

    def __post_init__(self) -> None:
        check(self)
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary positions need an even number")
        if self.directions == "both" and self.objective == "masked":
            text = "{directions} is both, but {objective} is masked, which sees both sides of a residue; leave it out"
            raise ConfigError(Message(text, directions=Argument("directions"), objective=Argument("objective")))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ModelConfig:
        """A configuration from a table of a file.

        Raises:
            ConfigError: a key that is unknown or missing, or a value out of range.
        """
        return from_mapping(cls, values)

    @classmethod
    def from_size(cls, size: str, **choices: Any) -> ModelConfig:
        """The recipe of a size (`nano`, `tiny`, `small`, `base`) or of a TOML file, with choices on top.

        Raises:
            ConfigError: an unknown size, or a value out of range; where the file is at fault, it is named.
            OSError: the file cannot be read.
        """
        if size not in SIZES and not size.endswith(".toml"):
            text = "{size} is {value!r}; choose one of {known} or name a .toml file"
            raise ConfigError(Message(text, size=Argument("size"), value=size, known=", ".join(SIZES)))
        # Choices are judged on a good recipe first: what is wrong after that is the file's fault.
        chosen = cls.from_mapping({**_recipe(size if size in SIZES else "nano"), **choices})
        if size in SIZES:
            return chosen
        import tomllib

        data = Path(size).read_bytes()
        try:
            return cls.from_mapping({**tomllib.loads(data.decode("utf-8")), **choices})
        except (ConfigError, ValueError, RecursionError) as error:
            raise ConfigError(f"{size}: {error}") from error

    def to_mapping(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return dataclasses.asdict(self)


def _recipe(size: str) -> dict[str, Any]:
    # Imported here: `info` reads a configuration without needing a recipe.
    import tomllib
    from importlib import resources

    text = resources.files("protperf.lm").joinpath("recipes", f"{size}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
