"""What computes, by name. The names and the choice behind `auto` are those of the native module."""

from __future__ import annotations

import functools

from protperf import _arguments, _native
from protperf.errors import ConfigError

__all__ = ["backends", "check_backend", "log_choice"]

# A tuple of Python: torch.compile reads it while it traces.
_NAMES = _native.backends()


def backends() -> tuple[str, ...]:
    """Names of the backends that `favor_attention` takes.

    `auto` is the fastest for the type of the tensors that this machine has, a GPU apart; which one that is, the logger
    `protperf` says once for each type, at level debug.
    """
    return _NAMES


def check_backend(name: object) -> str:
    """The name of a backend.

    Raises:
        DtypeError: not a string.
        ConfigError: no backend has this name; the message lists those that there are.
    """
    checked = _arguments.check_name("backend", name)
    if checked not in _NAMES:
        raise ConfigError(f"backend {checked!r} is unknown; choose one of {', '.join(_NAMES)}")
    return checked


def log_choice(backend: str, stored: str | None = None) -> None:
    """Log what `auto` chooses, when it is first asked for; `stored` is a type of 16 bits."""
    if backend == "auto":
        _log_choice(_arguments.isa(), stored)


@functools.cache
def _log_choice(isa: str | None, stored: str | None) -> None:
    # Not imported with the package: a command that only prints its help has no use for it.
    import logging

    tensors = "" if stored is None else f" for {stored}"
    logging.getLogger("protperf").debug("backend 'auto' is %r%s", _native.chosen_backend("auto", isa, stored), tensors)
