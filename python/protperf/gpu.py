"""The GPUs that `backend="wgpu"` may use, through Vulkan, Metal or DX12.

`PROTPERF_GPU` chooses among several: an index, a part of a name, or `off`. Without it the first discrete GPU is used,
else an integrated or virtual one. An adapter that computes on the processor (llvmpipe) is used only where it is named.
"""

from __future__ import annotations

import dataclasses

from protperf import _native

__all__ = ["Adapter", "adapters", "fault"]


@dataclasses.dataclass(frozen=True, slots=True)
class Adapter:
    """A GPU, or a driver that computes on the processor.

    kind is `discrete`, `integrated`, `virtual`, `processor` or `other`; interface `vulkan`, `metal` or `dx12`;
    max_binding the largest buffer in bytes that one call may need; is_chosen whether `backend="wgpu"` would use it.
    """

    index: int
    name: str
    kind: str
    interface: str
    driver: str
    max_binding: int
    is_chosen: bool


def adapters() -> tuple[Adapter, ...]:
    """Every adapter of this machine. Asks the drivers, which takes from 10 ms to seconds."""
    found, _ = _native.gpu_adapters()
    names = [field.name for field in dataclasses.fields(Adapter)]
    return tuple(Adapter(**{name: getattr(adapter, name) for name in names}) for adapter in found)


def fault() -> str | None:
    """Why `backend="wgpu"` cannot be used, and what would mend it; None where it can."""
    _, why = _native.gpu_adapters()
    return why
