"""Arrays and options of attention as the native module takes them, for callers with arrays and for those with a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from protperf import _arguments
from protperf._arrays import as_array
from protperf._feature_maps import LogLinear, find_map
from protperf.errors import ConfigError, DtypeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["map_arguments", "visibility_arguments"]


def map_arguments(
    feature_map: str | LogLinear, omega: ArrayLike | None, kernel_epsilon: float | None, q_shape: Sequence[int]
) -> tuple[NDArray[Any] | None, dict[str, Any]]:
    """Omega, and what the native module takes to know the feature map.

    Raises:
        ConfigError, ShapeError, DtypeError: a map, directions or an epsilon that do not go together, or with q.
    """
    import numpy as np

    epsilon = _arguments.check_epsilon(kernel_epsilon)
    if isinstance(feature_map, LogLinear):
        if omega is not None:
            raise ConfigError("omega cannot be given together with a LogLinear feature_map, which has directions")
        if epsilon is not None:
            raise ConfigError("kernel_epsilon belongs to activation maps; a LogLinear feature_map takes none")
        return None, {"parameters": tuple(map(_parameter, feature_map.as_tuple()))}
    find_map(feature_map)
    directions = None if omega is None else as_array("omega", omega)
    shape = None if directions is None else directions.shape
    _arguments.check_omega(shape, "" if directions is None else directions.dtype.name, q_shape, feature_map)
    usable = None if directions is None else np.require(directions, np.float64, ["C", "A"])
    return usable, {"feature_map": feature_map, "kernel_epsilon": epsilon}


def visibility_arguments(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    cu_seqlens: ArrayLike | None,
    key_padding_mask: ArrayLike | None,
) -> dict[str, Any]:
    """Borders of segments and padding as the native module takes them.

    Raises:
        ConfigError, ShapeError, DtypeError: they do not go together, or with q and k.
    """
    import numpy as np

    mask = None if key_padding_mask is None else as_array("key_padding_mask", key_padding_mask)
    borders = None if cu_seqlens is None else as_array("cu_seqlens", cu_seqlens)
    _arguments.check_visibility(
        q_shape, k_shape, borders is not None, None if mask is None else (mask.shape, mask.dtype.name)
    )
    if borders is not None:
        if borders.dtype.kind == "b":
            raise DtypeError("cu_seqlens has type bool; convert it to int32 or int64")
        _arguments.check_segments(borders.shape, borders.dtype.name, borders.tolist(), q_shape[2])
        borders = np.require(borders, np.int64, ["C", "A"])
    return {
        "cu_seqlens": borders,
        "key_padding_mask": None if mask is None else np.ascontiguousarray(mask).view(np.uint8),
    }


def _parameter(value: Any) -> NDArray[Any] | None:
    import numpy as np

    if value is None:
        return None
    array = as_array("feature_map", value)
    if array.dtype.name not in _arguments.FLOATS:
        raise DtypeError(f"feature_map has a parameter of type {array.dtype.name}; convert it to float32 or float64")
    return np.require(array, np.float64, ["C", "A"])
