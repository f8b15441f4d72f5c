"""Where a model may run, and in which type."""

from __future__ import annotations

from protperf.errors import ConfigError, DeviceError

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "float64")


def check_device(device: str) -> None:
    """Refuse what this machine and its torch cannot compute on.

    Raises:
        ConfigError: an unknown name; DeviceError: a known one that is not here.
    """
    if device == "wgpu":
        raise DeviceError("device wgpu is not available in this installation; use cpu")
    if device not in DEVICES:
        raise ConfigError(f"device is {device!r}; choose one of {', '.join(DEVICES)}")
    if device in ("cuda", "mps"):
        # torch takes seconds to load, which the names above need not wait for.
        import torch

        if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
            raise DeviceError(f"device {device} is not available: torch finds none on this machine; use cpu")


def torch_device(device: str) -> str:
    """What torch calls a device that was checked; `auto` is the CPU, where every form of attention has a kernel."""
    return "cpu" if device == "auto" else device


def check_dtype(dtype: str, known: tuple[str, ...] = DTYPES) -> None:
    """Refuse a type that nothing is computed in here.

    Raises:
        ConfigError: an unknown name; DeviceError: a type that exists and is not computed in.
    """
    if dtype in known:
        return
    choice = f"use {' or '.join(known)}"
    if dtype in (*DTYPES, "bfloat16", "float16"):
        raise DeviceError(f"dtype {dtype} is not available here; {choice}")
    raise ConfigError(f"dtype is {dtype!r}; {choice}")
