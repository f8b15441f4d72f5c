"""Failed allocations of torch, told as `MemoryError`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from protperf.errors import OutOfMemory

__all__ = ["tells_memory"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def tells_memory(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn the RuntimeError of an allocation that failed inside of torch into `OutOfMemory`."""

    @functools.wraps(function)
    def told(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if _is_allocation(error):
                raise OutOfMemory(_first_sentence(str(error))) from error
            raise

    return told


def _is_allocation(error: RuntimeError) -> bool:
    """Whether it is one: torch has a class for devices, but on a CPU only the text says it."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in str(error) for sign in ("DefaultCPUAllocator", "std::bad_alloc")
    )


def _first_sentence(text: str) -> str:
    """What the allocator says, without where in torch it says so."""
    return text.partition("DefaultCPUAllocator: ")[2].partition(". Error code")[0] or text
