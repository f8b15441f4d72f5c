"""What the manifest and configuration of a verified step say, checked value by value.

Whoever made a checkpoint can also have sealed its manifest, so no value is trusted just because the digests match. A
fault is a `CheckpointError` that names the file. torch is not needed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from protperf.errors import ConfigError
from protperf.lm.model.config import ModelConfig
from protperf.lm.storage.checkpoint import MANIFEST, Step
from protperf.lm.storage.plain_file import broken, read_table, short

_TEXT, _DIGEST = re.compile(r"[!-~]{1,100}\Z"), re.compile(r"[0-9a-f]{64}\Z")
_FACTS = {"version": _TEXT, "torch": _TEXT, "isa": _TEXT, "data_sha256": _DIGEST, "validation_sha256": _DIGEST}
_MAX_THREADS = 2**20
MAX_ORIGIN = 2000
"""Characters of a text on where a run comes from."""
_MAX_COUNTS = 16
_ORIGIN = ("command", "data", "init", "validation", "started")

T = TypeVar("T")


def read_facts(step: Step) -> dict[str, Any]:
    """The versions, instruction set, threads, device and digests of the data that a run was made with.

    Raises:
        CheckpointError: one is missing or malformed.
    """
    facts: dict[str, Any] = {name: step.manifest.get(name) for name in (*_FACTS, "threads")}
    for name, pattern in _FACTS.items():
        if not isinstance(facts[name], str) or not pattern.match(facts[name]):
            raise broken(step.path / MANIFEST, f"has {short(facts[name])} as {name}")
    if type(facts["threads"]) is not int or not 1 <= facts["threads"] <= _MAX_THREADS:
        raise broken(step.path / MANIFEST, f"has {short(facts['threads'])} as threads")
    # Checkpoints of earlier versions were all made on a CPU, and do not say so.
    facts["device"] = step.manifest.get("device", "cpu")
    if not isinstance(facts["device"], str) or not _TEXT.match(facts["device"]):
        raise broken(step.path / MANIFEST, f"has {short(facts['device'])} as device")
    return facts


def read_origin(step: Step) -> dict[str, Any] | None:
    """Where a run comes from: text by name, and under `overlap` counts by name or None. None for earlier versions.

    Raises:
        CheckpointError: it is malformed.
    """
    origin = step.manifest.get("origin")
    if origin is None:
        return None
    if not isinstance(origin, dict) or not set(origin) <= {*_ORIGIN, "overlap"}:
        raise broken(step.path / MANIFEST, f"has {short(origin)} as origin")
    for name in _ORIGIN:
        text = origin.get(name, "")
        if not isinstance(text, str) or len(text) > MAX_ORIGIN or not text.isprintable():
            raise broken(step.path / MANIFEST, f"has {short(text)} as {name} of its origin")
    overlap = origin.get("overlap")
    if overlap is not None and not _are_counts(overlap):
        raise broken(step.path / MANIFEST, f"has {short(overlap)} as overlap of its origin")
    return origin


def _are_counts(values: Any) -> bool:
    if not isinstance(values, dict) or len(values) > _MAX_COUNTS:
        return False
    return all(_TEXT.match(name) and type(count) is int and 0 <= count < 2**62 for name, count in values.items())


def read_config(step: Step) -> ModelConfig:
    """The configuration of the network.

    Raises:
        CheckpointError: the file is not a table of that kind, or a value is out of range.
    """
    path = step.path / "config.json"
    try:
        return ModelConfig.from_mapping(read_table(path))
    except ConfigError as error:
        raise broken(path, _shortened(error)) from error


def read_section(step: Step, name: str, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of one table of the manifest; it raises ConfigError for a value that it does not accept.

    Raises:
        CheckpointError: the table is missing or not accepted.
    """
    try:
        return parse(step.manifest.get(name))
    except ConfigError as error:
        raise broken(step.path / MANIFEST, _shortened(error)) from error


def _shortened(error: ConfigError) -> str:
    return str(error)[:200].encode("ascii", "backslashreplace").decode()
