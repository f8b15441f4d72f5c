"""The registry of feature maps, read once from the native module, and maps that callers give by their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from protperf import _native
from protperf.errors import ConfigError, DtypeError

__all__ = ["FEATURE_MAPS", "FeatureMap", "LogLinear", "default_epsilon", "feature_dim", "find_map"]


class FeatureMap(NamedTuple):
    """What the registry knows about a map.

    Attributes:
        family: exponential, activation or trigonometric.
        default_epsilon: what is added to every feature unless the caller says otherwise.
        projections_per_row: rows of directions that the map makes from a row of omega.
        features_per_row: features that it makes from a row of omega.
    """

    name: str
    family: str
    default_epsilon: float
    projections_per_row: int
    features_per_row: int


# Python objects rather than those of the native module: torch.compile reads them while it traces.
FEATURE_MAPS: Mapping[str, FeatureMap] = MappingProxyType(
    {
        row.name: FeatureMap(row.name, row.family, row.default_epsilon, row.projections_per_row, row.features_per_row)
        for row in _native.feature_maps()
    }
)


@dataclass(frozen=True)
class LogLinear:
    """An exponential feature map given by its parameters: pass it as `feature_map`, with omega None.

    With x = q D^-1/4 and y = k D^-1/4, and F features of each head,

        log phi_m(q) = query_directions[m] . x + query_constants[m]
        log phi_m(k) = key_directions[m] . y + key_constants[m] - sum_l key_quadratic[l] y[l]^2 / 2

    Shapes: directions [F,D] or, with parameters per head, [H,F,D]; quadratic [D] or [H,D]; constants [F] or [H,F].
    Arrays for the NumPy functions; tensors for those of `protperf.torch`, which are differentiable in them.

    The quadratic is diagonal, one number per axis. A full symmetric matrix is no more general: where it is
    R diag(g) R^T with a rotation R, q, k and all directions can be multiplied by R^T beforehand, which changes no
    product between them. And it would cost D^2 per key instead of D, as much as D more features.

    Attributes:
        key_directions: None takes those of the queries.
        key_quadratic: None is 1 on every axis.
        query_constants, key_constants: None is 0.
    """

    query_directions: Any
    key_directions: Any = None
    key_quadratic: Any = None
    query_constants: Any = None
    key_constants: Any = None

    def as_tuple(self) -> tuple[Any, Any, Any, Any, Any]:
        """The parameters in the order that the native module takes."""
        return (
            self.query_directions,
            self.key_directions,
            self.key_quadratic,
            self.query_constants,
            self.key_constants,
        )


def find_map(name: Any) -> FeatureMap:
    """The map of a public name.

    Raises:
        DtypeError: not a string.
        ConfigError: no map has this name; the message lists those that there are.
    """
    if not isinstance(name, str):
        raise DtypeError(f"feature_map must be a name or a LogLinear, not {type(name).__name__}")
    if name not in FEATURE_MAPS:
        raise ConfigError(f"feature_map {name!r} is unknown; choose one of {', '.join(FEATURE_MAPS)}")
    return FEATURE_MAPS[name]


def feature_dim(feature_map: str, num_features: int) -> int:
    """F, the width of phi(x), for a number of rows of omega."""
    return num_features * find_map(feature_map).features_per_row


def default_epsilon(feature_map: str) -> float:
    """What is added to every feature of a map unless the caller says otherwise."""
    return find_map(feature_map).default_epsilon
