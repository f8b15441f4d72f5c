"""Failed allocations inside torch, raised as `OutOfMemory`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from protperf.errors import OutOfMemory

__all__ = ["translate_out_of_memory"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def translate_out_of_memory(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn the RuntimeError of an allocation that failed inside torch into `OutOfMemory`, a MemoryError."""

    @functools.wraps(function)
    def translated(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if _is_allocation(error):
                raise OutOfMemory(_first_sentence(str(error))) from error
            raise

    return translated


def _is_allocation(error: RuntimeError) -> bool:
    """Whether an allocation failed: torch has a class for that on other devices, but on a CPU only the text says so."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in str(error) for sign in ("DefaultCPUAllocator", "std::bad_alloc")
    )


def _first_sentence(text: str) -> str:
    """The allocator's message without the place in torch that raised it."""
    return text.partition("DefaultCPUAllocator: ")[2].partition(". Error code")[0] or text
