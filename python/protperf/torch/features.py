"""Features of queries and keys as `mantissa * 2^exponent`, and their gradients: the only file that knows the families.

The integer exponent carries what could overflow: the logarithm of an exponential feature, the factor exp(|y|^2/2) of
a trigonometric key, the size of an activation. What reads features need not know their family.

With scaled inputs x = q D^-1/4, y = k D^-1/4 and directions w_m (rows made from omega):

    exponential    exp(w.x),          exp(w.y - |y|^2/2)          an exponent per feature
    activation     f(w.x) + epsilon,  f(w.y) + epsilon            an exponent per row
    trigonometric  [cos, sin](w.x),   [cos, sin](w.y) exp(|y|^2/2)  an exponent per row

A map may weigh the norm |y|^2/2 otherwise than by 1 (`_QUADRATIC`).
A factor that a whole query row carries cancels in the quotient, so queries leave exp(|x|^2/2) out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from protperf import _arguments
from protperf._feature_maps import find_map
from protperf.errors import ConfigError
from protperf.torch.exponents import NIL, exponent_of, power_of_two, split

__all__ = ["LOG2_E", "FeatureMap", "Features", "check_epsilon", "limited", "without"]

LOG2_E = 1 / math.log(2.0)
_MAX_INPUT = 1e15
"""Scaled inputs saturate here, so that no product of finite inputs overflows."""

_HUGE = 2.0**30
"""Activation rows have exponent 0 up to this size; the native kernels have the same, so that states mean the same."""


class Features(NamedTuple):
    """`mantissa * 2^exponent` for the rows of one side.

    Shapes: mantissa [n,H,C,F]; exponent [n,H,C,F], or [n,H,C,1] where a row has one.
    """

    mantissa: torch.Tensor
    exponent: torch.Tensor


def limited(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Rows that saturate where they would be too large once multiplied by `scale`."""
    limit = _MAX_INPUT / scale
    return x.clamp(-limit, limit)


def without(features: Features, keep: torch.Tensor | None) -> Features:
    """Features of rows; those that `keep` [n,H,C] leaves out are zero and raise no reference."""
    if keep is None:
        return features
    keep = keep.unsqueeze(-1)
    return Features(torch.where(keep, features.mantissa, 0.0), torch.where(keep, features.exponent, NIL))


def check_epsilon(feature_map: str, kernel_epsilon: float | None) -> float:
    """The `kernel_epsilon` of a call; the map's own where none is given.

    Raises:
        DtypeError: not a number; ConfigError: negative or not finite, or a map that takes none.
    """
    epsilon = _arguments.check_epsilon(kernel_epsilon)
    if epsilon is None:
        return find_map(feature_map).default_epsilon
    if not 0 <= epsilon < math.inf:
        raise ConfigError(f"kernel_epsilon is {epsilon}; it must be finite and at least 0")
    if epsilon and find_map(feature_map).family != "activation":
        raise ConfigError(f"kernel_epsilon is {epsilon}, but feature_map {feature_map!r} takes none; leave it out")
    return epsilon


_QUADRATIC = {"gaussian": 2.0, "fourier": 0.0, "exp": 0.0}
"""What the norm |y|^2/2 of a key is multiplied by, where it is not 1."""


def directions(feature_map: str, omega: torch.Tensor) -> torch.Tensor:
    """The directions [..,P,D] that a map makes of omega [..,M,D]; a row of zeros stays one."""
    if feature_map == "hyperbolic":
        return torch.cat([omega, -omega], -2)
    if feature_map == "smreg":
        return omega * _smreg_scale(omega)
    return _as_drawn(feature_map, omega)


def directions_gradient(feature_map: str, omega: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of omega from that of its `directions`."""
    if feature_map == "hyperbolic":
        plus, minus = gradient.chunk(2, -2)
        return plus - minus
    if feature_map == "smreg":
        # Only what is tangent to the sphere changes a direction of fixed norm.
        squares = (omega * omega).sum(-1, keepdim=True)
        along = (omega * gradient).sum(-1, keepdim=True) / squares.where(squares > 0, 1.0)
        return _smreg_scale(omega) * (gradient - along * omega)
    return _as_drawn(feature_map, gradient)


def _as_drawn(feature_map: str, rows: torch.Tensor) -> torch.Tensor:
    """Rows that are directions as they are, or their gradient; a new map has to be listed, here or above."""
    if feature_map not in ("positive", "trigonometric", *_QUADRATIC, *_ACTIVATIONS):
        raise NotImplementedError(f"the directions of feature_map {feature_map!r} are not written in plain torch yet")
    return rows


def _smreg_scale(omega: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(omega, dim=-1, keepdim=True)
    return torch.where(norm > 0, math.sqrt(omega.shape[-1]) / norm.where(norm > 0, 1.0), 0.0)


class FeatureMap:
    """One feature map with its directions, in the type of the computation.

    Args:
        name: a name from `feature_maps()`.
        omega: finite, [M,D] or [H,M,D]; None takes the inputs themselves (activation maps only).
        epsilon: added to every feature of an activation map.
    """

    def __init__(self, name: str, omega: torch.Tensor | None, head_dim: int, epsilon: float) -> None:
        self.name, self.family, self.epsilon = name, find_map(name).family, epsilon
        self.omega = omega
        self._quadratic = _QUADRATIC.get(name, 1.0)
        self._head_dim, self._input_scale = head_dim, head_dim**-0.25
        self._directions = None if omega is None else directions(name, omega) * self._input_scale

    @property
    def width(self) -> int:
        """F."""
        projections = self._head_dim if self._directions is None else self._directions.shape[-2]
        return 2 * projections if self.family == "trigonometric" else projections

    @property
    def num_references(self) -> int:
        """Integer references of a state: one for each feature, or one for all."""
        return self.width if self.family == "exponential" else 1

    def queries(self, x: torch.Tensor) -> Features:
        """Features of query rows [n,H,C,D]."""
        return self._features(limited(x, self._input_scale), is_key=False)

    def keys(self, y: torch.Tensor, keep: torch.Tensor | None) -> Features:
        """Features of key rows [n,H,C,D]; those that `keep` [n,H,C] leaves out are zero and raise no reference."""
        return without(self._features(limited(y, self._input_scale), is_key=True), keep)

    def queries_gradient(
        self, x: torch.Tensor, features: Features, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Gradients of query rows and, summed over rows, of the scaled directions [H,P,D], from that of mantissas."""
        return self._pull_back(limited(x, self._input_scale), features, gradient, is_key=False)

    def keys_gradient(
        self, y: torch.Tensor, features: Features, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As `queries_gradient`, for key rows."""
        return self._pull_back(limited(y, self._input_scale), features, gradient, is_key=True)

    def parameter_gradients(self, sums: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        """The gradient of omega, from the sums of what the gradients above gave; None where there is no omega."""
        if self.omega is None:
            return (None,)
        if "directions" not in sums:
            return (torch.zeros_like(self.omega),)
        ddirections = sums["directions"]
        if self.omega.dim() == 2:
            ddirections = ddirections.sum(0)
        return (directions_gradient(self.name, self.omega, ddirections * self._input_scale),)

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        return x * self._input_scale if self._directions is None else x @ self._directions.mT

    def _half_norm(self, x: torch.Tensor) -> torch.Tensor:
        return (x * x).sum(-1, keepdim=True) * (0.5 * self._quadratic * self._input_scale**2)

    def _features(self, x: torch.Tensor, is_key: bool) -> Features:
        projected = self._project(x)
        if self.family == "exponential":
            log = projected - self._half_norm(x) if is_key else projected
            return Features(*split(log * LOG2_E))
        if self.family == "activation":
            function, _ = _ACTIVATIONS[self.name]
            # The native kernels have the same limit.
            return _row_scaled(function(projected.clamp(-_MAX_INPUT, _MAX_INPUT)) + self.epsilon)
        waves = torch.cat([projected.cos(), projected.sin()], -1)
        if not is_key:
            return Features(waves, torch.zeros_like(waves[..., :1]))
        mantissa, exponent = split(self._half_norm(x) * LOG2_E)
        return Features(waves * mantissa, exponent)

    def _pull_back(
        self, x: torch.Tensor, features: Features, gradient: torch.Tensor, is_key: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mantissa, exponent = features
        dlog = gradient * mantissa
        if self.family == "exponential":
            dprojected, dhalf_norm = dlog, -dlog.sum(-1, keepdim=True)
        elif self.family == "activation":
            _, slope = _ACTIVATIONS[self.name]
            dprojected, dhalf_norm = gradient * slope(self._project(x)) * power_of_two(-exponent), None
        else:
            cosines, sines = mantissa.chunk(2, -1)
            dcosines, dsines = gradient.chunk(2, -1)
            dprojected, dhalf_norm = dsines * cosines - dcosines * sines, dlog.sum(-1, keepdim=True)
        if self._directions is None:
            return dprojected * self._input_scale, {}
        dx, ddirections = dprojected @ self._directions, (dprojected.mT @ x).sum(0)
        if is_key and dhalf_norm is not None:
            dx = dx + dhalf_norm * (self._quadratic * self._input_scale**2) * x
        return dx, {"directions": ddirections}


def _row_scaled(values: torch.Tensor) -> Features:
    """Rows of huge features divided by a power of two, so that sums of products with them stay finite."""
    largest = values.detach().abs().amax(-1, keepdim=True)
    exponent = torch.where(largest > _HUGE, exponent_of(largest), 0.0)
    return Features(values * power_of_two(-exponent), exponent)


def _elu1(u: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.elu(u) + 1


def _gelu_argument(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S and its slope, of gelu(u) = u sigmoid(s) in the form with tanh; limited, for beyond sigmoid(s) is 0 or 1."""
    u = u.clamp(-32.0, 32.0)
    scale, share = math.sqrt(8 / math.pi), 0.044715
    return scale * (u + share * u**3), scale * (1 + 3 * share * u * u)


def _gelu(u: torch.Tensor) -> torch.Tensor:
    return u * torch.sigmoid(_gelu_argument(u)[0])


def _gelu_slope(u: torch.Tensor) -> torch.Tensor:
    s, rate = _gelu_argument(u)
    share = torch.sigmoid(s)
    return share + u.clamp(-32.0, 32.0) * rate * share * torch.sigmoid(-s)


_ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "relu": (torch.relu, lambda u: (u > 0).to(u.dtype)),
    "elu1": (_elu1, lambda u: u.clamp(max=0.0).exp()),
    "identity": (lambda u: u, torch.ones_like),
    "abs": (torch.abs, torch.sign),
    "relu2": (lambda u: torch.relu(u).square(), lambda u: 2 * torch.relu(u)),
    "square": (torch.square, lambda u: 2 * u),
    "sigmoid": (torch.sigmoid, lambda u: torch.sigmoid(u) * torch.sigmoid(-u)),
    "tanh": (torch.tanh, lambda u: 4 * torch.sigmoid(2 * u) * torch.sigmoid(-2 * u)),
    "gelu": (_gelu, _gelu_slope),
    "cos": (torch.cos, lambda u: -u.sin()),
}
"""Each activation map and its derivative, as functions of the projection."""
