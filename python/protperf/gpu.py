"""The GPUs that `backend="wgpu"` may use, through Vulkan, Metal or DX12, and attention on tensors that stay there.

    q, k, v = (gpu.upload(x) for x in (q, k, v))
    out = gpu.favor_attention(q, k, v, omega)   # stays on the GPU
    out.numpy()                                 # comes back

`PROTPERF_GPU` chooses among several: an index (digits alone), a part of a name, or `off`. Without it the first discrete
GPU is used, else an integrated or virtual one. An adapter that computes on the processor (llvmpipe) is used only where
it is asked for.
`PROTPERF_GPU_MEMORY`, such as 4G, says how much of its memory may be used; what does not fit is computed in parts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NoReturn

from protperf import _arguments, _native
from protperf._array_arguments import map_arguments, visibility_arguments
from protperf._arrays import as_array
from protperf._backends import backends
from protperf._feature_maps import LogLinear
from protperf.errors import ConfigError, DeviceError, DtypeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Adapter",
    "GpuTensor",
    "Traffic",
    "adapters",
    "draw_projection",
    "fault",
    "favor_attention",
    "favor_attention_with_state",
    "merge_states",
    "traffic",
    "upload",
]

_CPU = (1, 0)
"""DLPack's number of a processor, and which of them."""
_STORED = ("float32", "float16", "bfloat16")
"""Types of numbers on a GPU."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """What this process has carried to its GPU and back since it was opened, and the memory that it uses there.

    A submission is work that is handed to the GPU: one for each batch that a model reads, unless it is a long one.
    """

    uploaded_bytes: int
    submissions: int
    read_backs: int
    read_back_bytes: int
    used_bytes: int


def traffic() -> Traffic:
    """What was carried so far; all zeros before the first call on a GPU. Waits while a call computes."""
    return Traffic(*_native.gpu_traffic())


class GpuTensor:
    """A tensor on the GPU, made by `upload` and by the functions here. Its memory is free again when it is dropped.

    `numpy()`, `numpy.asarray` and DLPack (`torch.from_dlpack`) copy it to the host, and wait for what computes it. In a
    forked child, and after the GPU was lost, it is of no use and says so (DeviceError).
    """

    def __init__(self, handle: _native.GpuTensor, dtype: np.dtype[Any]) -> None:
        self._handle, self._dtype = handle, dtype
        self._copy: NDArray[Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._handle.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """What its numbers are stored as; they are computed with in float32."""
        return self._dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self._dtype.itemsize

    def numpy(self) -> NDArray[Any]:
        """A copy on the host.

        Raises:
            DeviceError: the GPU failed, was lost, or is that of the process before a fork.
        """
        import numpy as np

        out = np.empty(self.shape, self._dtype)
        self._handle.read(out.reshape(-1).view(np.uint8))
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a tensor on a GPU comes to the host as a copy alone")
        return self.numpy().astype(dtype or self._dtype, copy=False)

    def __dlpack__(self, *, stream: Any = None, dl_device: tuple[int, int] | None = None, **options: Any) -> Any:
        if stream is not None or dl_device not in (None, _CPU) or options.get("copy") is False:
            raise BufferError("a tensor on a GPU is exported as a copy on the host alone")
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        # What copy.copy, copy.deepcopy and pickle ask for.
        raise DtypeError(
            "a GpuTensor is neither copied nor pickled: its numbers never change, so share it; or take its copy on the "
            "host, numpy(), and carry that to a GPU with gpu.upload where it is needed"
        )

    def __repr__(self) -> str:
        return f"GpuTensor(shape={list(self.shape)}, dtype={self._dtype.name})"


def upload(array: Any, *, dtype: str | None = None) -> GpuTensor:
    """Carry an array to the GPU: of NumPy, anything that NumPy makes one of, or a tensor on the host through DLPack.

    Args:
        dtype: `float32`, or `float16`, which takes half the memory; None keeps the array's. Any adapter has both, for
            numbers of 16 bits are unpacked in the shaders and computed with in float32.

    Raises:
        DtypeError: numbers that a GPU does not compute with; the message names the remedy.
        DeviceError: there is no GPU, or it failed; OutOfMemory: it has no room.
    """
    import numpy as np

    _check_built()
    if array is None:
        raise DtypeError("array is None; give an array of numbers")
    if not isinstance(array, np.ndarray) and hasattr(array, "__dlpack__"):
        try:
            array = np.from_dlpack(array)
        except (BufferError, RuntimeError, TypeError) as error:
            found = str(getattr(array, "dtype", ""))
            remedy = (
                f" (it has type {found}, which NumPy lacks; convert it to float32 or float16 first, as x.float() does)"
            )
            raise DtypeError(
                f"array of type {type(array).__name__} cannot be read through DLPack: "
                f"{error}{remedy if found.endswith('bfloat16') else ''}"
            ) from error
    array = as_array("array", array)
    name = array.dtype.name
    if array.dtype.kind not in "biuf" and not name.startswith(("float", "bfloat")):
        kind = "complex numbers" if array.dtype.kind == "c" else f"values of type {name}"
        remedy = "upload x.real and x.imag" if array.dtype.kind == "c" else "give an array of numbers"
        raise DtypeError(f"array holds {kind}; a GPU computes on float32 and float16: {remedy}")
    if dtype is not None:
        if _arguments.check_name("dtype", dtype) not in ("float32", "float16"):
            raise ConfigError(f"dtype is {dtype!r}; use float32 or float16")
        array = array.astype(dtype)
    elif name not in _STORED:
        raise DtypeError(f"array has type {name}; a GPU computes on float32 and float16: say dtype='float32'")
    usable = np.require(array, array.dtype.newbyteorder("="), ["C", "A"])
    handle = _native.GpuTensor(usable.reshape(-1).view(np.uint8), usable.shape, usable.dtype.name)
    return GpuTensor(handle, usable.dtype)


def favor_attention(
    q: GpuTensor,
    k: GpuTensor,
    v: GpuTensor,
    omega: ArrayLike | GpuTensor | None,
    *,
    feature_map: str | LogLinear = "positive",
    causal: bool = False,
    cu_seqlens: ArrayLike | None = None,
    key_padding_mask: ArrayLike | None = None,
    kernel_epsilon: float | None = None,
) -> GpuTensor:
    """As `protperf.favor_attention`, from tensors on the GPU to a tensor there; returns before it is computed.

    q, k and v have one type, which the output has too. Borders and mask are arrays on the host: they are small. The
    bits are those of `protperf.favor_attention(..., backend="wgpu")` on the same numbers.

    omega is an array on the host, or a tensor on the GPU, as `draw_projection` makes it. Such a tensor is read back
    once, M D numbers, by the first call that takes it, and that call waits: directions are scaled in float64 before
    shaders take them, and shaders have no float64. Its copy is kept with it, so that later calls read nothing back.

    Raises:
        ShapeError, DtypeError, ConfigError, DeviceError: as `protperf.favor_attention`.
        OutOfMemory: the GPU has no room.
    """
    return _attention(q, k, v, omega, feature_map, causal, cu_seqlens, key_padding_mask, kernel_epsilon)[0]


def favor_attention_with_state(
    q: GpuTensor,
    k: GpuTensor,
    v: GpuTensor,
    omega: ArrayLike | GpuTensor | None,
    state: GpuTensor | None = None,
    *,
    feature_map: str | LogLinear = "positive",
    causal: bool = True,
    cu_seqlens: ArrayLike | None = None,
    key_padding_mask: ArrayLike | None = None,
    kernel_epsilon: float | None = None,
) -> tuple[GpuTensor, GpuTensor]:
    """Attention to the keys of a state and to more keys, and the state after them, float32, which stays on the GPU too.

    Arguments as in `favor_attention`, states as in `protperf.torch.favor_attention_with_state`: [B,H,F,2+E], or one per
    segment [num_segments,H,F,2+E]; None is the state before the first key. Queries alone may read a state: S = 0.

    Raises:
        ShapeError, DtypeError, ConfigError, DeviceError, OutOfMemory: as `favor_attention`.
    """
    if isinstance(k, GpuTensor) and k.ndim == 4 and k.shape[2] == 0:
        causal = _arguments.check_flag("causal", causal) and False
    options = (feature_map, causal, cu_seqlens, key_padding_mask, kernel_epsilon)
    out, after = _attention(q, k, v, omega, *options, state=state, with_state=True)
    assert after is not None
    return out, after


def merge_states(a: GpuTensor, b: GpuTensor) -> GpuTensor:
    """The state of the keys of two states, all [B,H,F,2+E] float32 on the GPU, as `favor_attention_with_state` returns.

    So parts of a long input can be read in any order, each from no state, and their states merged.

    Raises:
        DtypeError: not a tensor on the GPU. ShapeError, ConfigError: they are not states of one shape.
        DeviceError: the GPU failed; OutOfMemory: it has no room.
    """
    import numpy as np

    _check_on_gpu({"a": a, "b": b})
    return GpuTensor(_native.gpu_merge_states(a._handle, b._handle), np.dtype(np.float32))


def draw_projection(
    num_features: int,
    head_dim: int,
    *,
    sampler: str = "orthogonal",
    norm: str = "chi",
    seed: int = 0,
    stream: tuple[int, int, int] = (0, 0, 0),
) -> GpuTensor:
    """`protperf.draw_projection` on the GPU: [num_features, head_dim] of the same numbers, rounded to float32.

    `favor_attention` takes it as omega.

    Args:
        sampler: `orthogonal` alone; norm, seed, stream: as in `protperf.draw_projection`.

    Raises:
        ConfigError, DtypeError: as `protperf.draw_projection`, and another sampler.
        DeviceError: there is no GPU, or it failed; OutOfMemory: it has no room.
    """
    import numpy as np

    _check_built()
    draw = _arguments.check_draw(num_features, head_dim, sampler, norm, seed, stream)
    return GpuTensor(_native.gpu_draw_projection(*draw), np.dtype(np.float32))


def _attention(
    q: GpuTensor,
    k: GpuTensor,
    v: GpuTensor,
    omega: ArrayLike | GpuTensor | None,
    feature_map: str | LogLinear,
    causal: bool,
    cu_seqlens: ArrayLike | None,
    key_padding_mask: ArrayLike | None,
    kernel_epsilon: float | None,
    state: GpuTensor | None = None,
    with_state: bool = False,
) -> tuple[GpuTensor, GpuTensor | None]:
    import numpy as np

    tensors = {"q": q, "k": k, "v": v, **({} if state is None else {"state": state})}
    _check_on_gpu(tensors)
    shapes = {name: tensors[name].shape for name in ("q", "k", "v")}
    causal = _arguments.check_flag("causal", causal)
    _arguments.check_tensors(shapes, {name: tensors[name].dtype.name for name in shapes}, causal)
    directions, of_map = map_arguments(feature_map, _on_host(omega), kernel_epsilon, q.shape)
    handle, after = _native.gpu_favor(
        q._handle,
        k._handle,
        v._handle,
        directions,
        causal=causal,
        state=None if state is None else state._handle,
        with_state=with_state,
        **of_map,
        **visibility_arguments(q.shape, k.shape, cu_seqlens, key_padding_mask),
    )
    return GpuTensor(handle, q.dtype), None if after is None else GpuTensor(after, np.dtype(np.float32))


def _check_on_gpu(tensors: dict[str, GpuTensor]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, GpuTensor):
            raise DtypeError(
                f"{name} of type {type(tensor).__name__} is not on the GPU; carry it there with gpu.upload"
            )


def _on_host(omega: ArrayLike | GpuTensor | None) -> ArrayLike | None:
    """Omega as an array; one of a tensor on the GPU is kept, for the numbers of a tensor never change."""
    if not isinstance(omega, GpuTensor):
        return omega
    if omega._copy is None:
        omega._copy = omega.numpy()
    return omega._copy


def _check_built() -> None:
    if "wgpu" not in backends():
        raise DeviceError(fault() or "this build has no GPU backend")
