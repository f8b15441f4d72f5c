"""Arguments as NumPy arrays: lists, arrays of NumPy, and those of any library that speaks DLPack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protperf.errors import DeviceError, DtypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["as_array"]

_DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI", 15: "WebGPU"}
_IN_MEMORY = (1, 3, 11, 13)
"""Devices of DLPack whose memory the CPU reads: its own, that of CUDA's and ROCm's host, and CUDA's managed memory."""


def as_array(name: str, value: Any) -> NDArray[Any]:
    """The value as an array, its own memory where that can be.

    Raises:
        DeviceError: an array on a GPU; DtypeError: a tensor of `protperf.gpu`, or what NumPy cannot make an array of.
            Both name the argument.
    """
    import numpy as np

    if type(value).__module__ == "protperf.gpu":
        raise DtypeError(f"{name} lies on a GPU; use protperf.gpu.favor_attention, or {name}.numpy()")
    try:
        kind, _ = value.__dlpack_device__() if hasattr(value, "__dlpack_device__") else (1, 0)
        if kind in _IN_MEMORY:
            is_foreign = hasattr(value, "__dlpack__") and not hasattr(value, "__array__")
            return np.from_dlpack(value) if is_foreign else np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:
        hint = "; use protperf.torch for tensors" if _is_of(value, "torch") else ""
        raise DtypeError(f"{name} of type {type(value).__name__} is not an array: {error}{hint}") from error
    where = _DEVICES.get(int(kind), f"DLPack type {int(kind)}")
    remedy = "use protperf.torch for tensors" if _is_of(value, "torch") else "copy it to the CPU first"
    raise DeviceError(f"{name} is on a device ({where}) whose memory the CPU does not read; {remedy}")


def _is_of(value: Any, package: str) -> bool:
    return type(value).__module__.split(".")[0] == package
