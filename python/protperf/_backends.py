"""What computes, by name. The names and the choice behind `auto` are those of the native module."""

from __future__ import annotations

import functools

from protperf import _arguments, _native

__all__ = ["backends", "check_backend"]


def backends() -> tuple[str, ...]:
    """Names of the backends that `favor_attention` takes.

    `auto` is the fastest that this machine has; which one that is, the logger `protperf` says once, at level debug.
    """
    return _native.backends()


def check_backend(name: object) -> str:
    """The name of a backend; what `auto` chooses is logged when it is first asked for.

    Raises:
        DtypeError: not a string. That no backend has the name, the native module says, which knows them.
    """
    checked = _arguments.check_name("backend", name)
    if checked == "auto":
        _log_choice(_arguments.isa())
    return checked


@functools.cache
def _log_choice(isa: str | None) -> None:
    # Not imported with the package: a command that only prints its help has no use for it.
    import logging

    logging.getLogger("protperf").debug("backend 'auto' is %r", _native.chosen_backend("auto", isa))
