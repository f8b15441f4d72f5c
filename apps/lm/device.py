"""Where a model may run, by which code, and in which type."""

from __future__ import annotations

from protperf.errors import ConfigError, DeviceError, MissingPackageError
from protperf.message import Argument, Message

DEVICES = ("auto", "cpu", "cuda", "mps")
"""Where a model is trained."""
READING_DEVICES = (*DEVICES, "wgpu")
"""Where one is read; `wgpu` is a GPU through Vulkan, Metal or DX12, without torch."""
DTYPES = ("float32", "float64")
ENGINES = ("auto", "native", "torch")


def check_reading_device(device: str) -> None:
    """Refuse what no model is read on here. Whether there is a GPU for `wgpu`, its driver says when a model is loaded.

    Raises:
        ConfigError: an unknown name; DeviceError: a known one that is not here.
    """
    if device not in READING_DEVICES:
        raise ConfigError(f"device is {device!r}; choose one of {', '.join(READING_DEVICES)}")
    if device != "wgpu":
        check_device(device)


def check_device(device: str) -> None:
    """Refuse what this machine and its torch cannot train on.

    Raises:
        ConfigError: an unknown name; DeviceError: a known one that is not here.
    """
    if device == "wgpu":
        raise DeviceError("device wgpu reads models and does not train them; use cpu, or cuda or mps through torch")
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


def choose_engine(engine: str, device: str, dtype: str = "float32") -> str:
    """`native` or `torch`: what was asked for, or with `auto` the native one where it can compute.

    Raises:
        ConfigError: an engine or a type that the device does not have; MissingPackageError: torch is not installed.
    """
    is_native = device in ("auto", "cpu", "wgpu")
    if engine == "native" and not is_native:
        text = "{engine} computes on cpu and wgpu, not on {device}; leave {engine} out"
        raise ConfigError(Message(text, engine=Argument("engine", "native"), device=device))
    if device == "wgpu" and engine == "torch":
        text = "{engine} does not compute on {device}; leave {engine} out"
        raise ConfigError(Message(text, engine=Argument("engine", "torch"), device=device))
    if device == "wgpu" and dtype != "float32":
        text = "{device} computes in float32; leave {dtype} out"
        raise ConfigError(Message(text, device=Argument("device", "wgpu"), dtype=Argument("dtype", dtype)))
    if engine == "native" or (engine == "auto" and is_native):
        return "native"
    import importlib.util
    import sys

    if sys.modules.get("torch", sys) is None or importlib.util.find_spec("torch") is None:
        text = "{engine} needs torch, which is not installed; leave {engine} out to compute without it"
        raise MissingPackageError(Message(text, engine=Argument("engine", "torch")))
    return "torch"


def chosen_device(device: str) -> str:
    """The device that a checked name means; `auto` is the CPU, where every form of attention has a kernel."""
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
