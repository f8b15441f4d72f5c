"""What an embedding can be asked for. Imports nothing heavy: a command refuses a wrong word before it loads a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.errors import ConfigError
from protperf.lm.options import REQUIRED, check, option
from protperf.lm.shared_options import batch_tokens_option, deterministic_option, is_taken, shard_option
from protperf.lm.tables.destination import is_file
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.model.config import ModelConfig

POOLS = ("mean", "max", "bos", "eos", "attention")
PER_RESIDUE = "residues"
"""What the array of vectors per residue is called, where a pooled one has the name of its pool."""
MODES = ("auto", "causal", "masked")
STORED_TYPES = {"f32": "<f4", "f16": "<f2"}
FORMATS = ("parquet", "npz", "h5", "safetensors")
_SUFFIXES = {".parquet": "parquet", ".npz": "npz", ".h5": "h5", ".hdf5": "h5", ".safetensors": "safetensors"}


def _check_pools(text: str) -> None:
    names = text.split(",")
    wrong = next((name for name in names if name not in POOLS or names.count(name) > 1), None)
    if wrong is not None:
        reason = "is named twice" if wrong in POOLS else "is unknown"
        template = "{pool}: {wrong!r} {reason}; choose of {known}, several separated by commas"
        parts = {"wrong": wrong, "reason": reason, "known": ", ".join(POOLS)}
        raise ConfigError(Message(template, pool=Argument("pool"), **parts))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """Which vectors, from which layer, read how."""

    pool: str | None = option(
        None,
        "One vector per sequence, or several separated by commas. mean, max: over the residues; bos, eos: at the token "
        "before them, after them; attention: mean weighted by softmax(sqrt(C) cos(h, q)), where q is bos, or eos if "
        "read left to right.",
        unit="POOL",
        suggestions=POOLS,
        judge=_check_pools,
        shown_default="mean",
    )
    per_residue: bool = option(False, "One vector per residue, all in one array with the offsets of the sequences.")
    layer: int = option(
        -1,
        "Layer: 0 is the embedding of the residues, i the output of block i, -1 the last, normalized.",
        least=-1,
        most=256,
    )
    stored_type: str = option(
        "f32", "Type of the stored numbers: f32 or f16.", argument="dtype", choices=tuple(STORED_TYPES)
    )
    mode: str = option(
        "auto",
        "masked: each position sees all others; causal: those before it; auto: masked if the model was trained for it.",
        choices=MODES,
    )
    batch_tokens: int = batch_tokens_option()
    deterministic: bool = deterministic_option()

    def __post_init__(self) -> None:
        check(self)
        if self.per_residue and self.pool is not None:
            names = {"pool": Argument("pool"), "per_residue": Argument("per_residue")}
            raise ConfigError(Message("{pool} and {per_residue} exclude each other; give one", **names))

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of vectors."""
        return (PER_RESIDUE,) if self.per_residue else tuple((self.pool or "mean").split(","))

    def to_mapping(self) -> dict[str, Any]:
        """The values by name."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOutput:
    """Where the vectors go, as what, and what happens to a file that was not finished."""

    out: Path = option(REQUIRED, "File to write, with FILE.meta.json next to it.", short="-o", unit="FILE")
    format: str | None = option(
        None,
        "parquet (needs pyarrow), npz, h5 (needs h5py), safetensors.",
        choices=FORMATS,
        shown_default="suffix of -o",
    )
    shard: str | None = shard_option()
    resume: bool = option(False, "Continue FILE.part, with the same model, input and options.")
    force: bool = option(False, "Start over where FILE.part has vectors of a run that was interrupted.")

    def __post_init__(self) -> None:
        check(self)

    def takes(self, n: int) -> bool:
        """Whether record `n` of the input belongs to this shard."""
        return is_taken(self.shard, n)

    def chosen_format(self) -> str:
        """The format asked for, else the one of the suffix.

        Raises:
            ConfigError: neither, or a stream or device.
        """
        name = self.format or _SUFFIXES.get(self.out.suffix.lower())
        if name is None:
            text = "{out} has no suffix of {known}; choose a {format}"
            parts = {"known": ", ".join(_SUFFIXES), "format": Argument("format")}
            raise ConfigError(Message(text, out=Argument("out", str(self.out)), **parts))
        if str(self.out) == "-" or not is_file(self.out):
            text = "{format} is written as a whole file; name one with {out}"
            raise ConfigError(Message(text, format=Argument("format", name), out=Argument("out")))
        return name


def choose_mode(config: ModelConfig, options: EmbedOptions) -> str:
    """`masked` or `causal`: what was asked for, if the model was trained for it and has such a layer and pool.

    Raises:
        ConfigError: it was not; the message says what can be asked for.
    """
    trained = ("masked", "causal") if config.objective == "both" else (config.objective,)
    mode = trained[0] if options.mode == "auto" else options.mode
    if mode not in trained:
        text = "this model was trained {trained} only; use {remedy}"
        raise ConfigError(Message(text, trained=trained[0], remedy=Argument("mode", trained[0])))
    if mode == "causal" and "bos" in options.arrays:
        text = "read left to right, the first token sees nothing else and is the same for each sequence; use {remedy}"
        raise ConfigError(Message(text, remedy=Argument("pool", "eos")))
    if options.layer > config.num_layers:
        text = "{layer} is {value}; this model has {last} blocks, so it must be from -1 to {last}"
        parts = {"value": options.layer, "last": config.num_layers}
        raise ConfigError(Message(text, layer=Argument("layer"), **parts))
    return mode
