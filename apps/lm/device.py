"""Where a model may run, by which code, and in which type."""

from __future__ import annotations

from protperf.errors import ConfigError, DeviceError, MissingPackageError
from protperf.message import Argument, Message

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "float64")
ENGINES = ("auto", "native", "torch")


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
        try:
            import torch
        except ImportError as error:
            raise MissingPackageError(f"device {device} needs torch, which is not installed; use cpu") from error
        if not (torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()):
            raise DeviceError(f"device {device} is not available: torch finds none on this machine; use cpu")


def choose_engine(engine: str, device: str) -> str:
    """`native` or `torch`: what was asked for, or with `auto` the native one where it can compute.

    Raises:
        ConfigError: the native engine on another device than a CPU; MissingPackageError: torch is not installed.
    """
    on_cpu = device in ("auto", "cpu")
    if engine == "native" and not on_cpu:
        text = "{engine} computes on a CPU, not on {device}; leave {engine} out"
        raise ConfigError(Message(text, engine=Argument("engine", "native"), device=device))
    if engine == "native" or (engine == "auto" and on_cpu):
        return "native"
    import importlib.util
    import sys

    if sys.modules.get("torch", sys) is None or importlib.util.find_spec("torch") is None:
        text = "{engine} needs torch, which is not installed; leave {engine} out to compute without it"
        raise MissingPackageError(Message(text, engine=Argument("engine", "torch")))
    return "torch"


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
