"""What several commands share."""

from __future__ import annotations

import os

from protperf.errors import ConfigError, DeviceError


def set_threads(threads: int | None) -> int:
    """Threads of torch and of the kernels: `-j`, else PROTPERF_NUM_THREADS, else the cores this process may use."""
    import torch

    from protperf.functional import build_info

    if threads is not None:
        if not 1 <= threads <= 4096:
            raise ConfigError(f"--threads is {threads}; it must be from 1 to 4096")
        os.environ["PROTPERF_NUM_THREADS"] = str(threads)
    chosen = int(build_info()["num_threads"])
    torch.set_num_threads(chosen)
    return chosen


def check_device(device: str) -> None:
    """Refuse what this installation cannot compute on.

    Raises:
        ConfigError: an unknown name; DeviceError: a known one that is not here.
    """
    if device in ("wgpu", "cuda", "mps"):
        raise DeviceError(f"device {device} is not available in this installation; use --device cpu")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device is {device!r}; choose auto or cpu")
