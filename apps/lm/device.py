"""Where a model may run."""

from __future__ import annotations

from protperf.errors import ConfigError, DeviceError


def check_device(device: str) -> None:
    """Refuse what this installation cannot compute on.

    Raises:
        ConfigError: an unknown name; DeviceError: a known one that is not here.
    """
    if device in ("wgpu", "cuda", "mps"):
        raise DeviceError(f"device {device} is not available in this installation; use cpu")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device is {device!r}; choose auto or cpu")
