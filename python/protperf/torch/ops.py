"""The operators `torch.ops.protperf.*`: their schemas, the shapes that the compiler sees, and what computes them.

Each is defined with torch's `Library` and a body in Python (`kernels.py`), so that MemoryError, TypeError and
KeyboardInterrupt pass unchanged. `derivatives.py` has the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import library

from protperf._feature_maps import feature_dim
from protperf.torch import derivatives, kernels
from protperf.torch.inputs import Options, computed_type

__all__: list[str] = []

_OPTIONS = (
    "str feature_map, bool causal, float kernel_epsilon, Tensor? cu_seqlens, Tensor? key_padding_mask, str backend"
)
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? omega"
_library = library.Library("protperf", "DEF")
_library.define(f"favor({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor)")
_library.define(
    f"favor_backward(Tensor grad, {_INPUTS}, Tensor out, Tensor den, bool with_omega, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(f"favor_state({_INPUTS}, Tensor? state, {_OPTIONS}) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"favor_state_backward(Tensor? grad, Tensor? grad_state, {_INPUTS}, Tensor? state, Tensor out, Tensor den, "
    f"Tensor after, bool with_omega, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _favor_fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, omega: torch.Tensor | None, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    out = q.new_empty(*q.shape[:3], v.shape[3])
    return out, q.new_empty(*q.shape[:3], 2, dtype=computed_type(q.dtype))


def _favor_backward_fake(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    out: torch.Tensor,
    den: torch.Tensor,
    with_omega: bool,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    return dq, dk, dv, omega.new_empty(omega.shape) if with_omega and omega is not None else q.new_empty(0)


def _favor_state_fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    state: torch.Tensor | None,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    given = Options(*options)
    features = feature_dim(given.feature_map, q.shape[3] if omega is None else omega.shape[-2])
    num_sequences = q.shape[0] if given.cu_seqlens is None else given.cu_seqlens.shape[0] - 1
    out, den = _favor_fake(q, k, v, omega)
    return out, den, den.new_empty(num_sequences, q.shape[1], features, v.shape[3] + 2)


def _favor_state_backward_fake(
    grad: torch.Tensor | None,
    grad_state: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    state: torch.Tensor | None,
    out: torch.Tensor,
    den: torch.Tensor,
    after: torch.Tensor,
    with_omega: bool,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    found = _favor_backward_fake(out, q, k, v, omega, out, den, with_omega)
    return *found, den.new_empty(0 if state is None else state.shape)


_library.impl("favor", kernels.native_favor, "CPU")
_library.impl("favor_backward", kernels.native_favor_backward, "CPU")
_library.impl("favor_state", kernels.native_favor_state, "CPU")
_library.impl("favor_state_backward", kernels.native_favor_state_backward, "CPU")
_library.impl("favor", kernels.chunked_favor, "CompositeExplicitAutograd")
_library.impl("favor_backward", kernels.chunked_favor_backward, "CompositeExplicitAutograd")
_library.impl("favor_state", kernels.chunked_favor_state, "CompositeExplicitAutograd")
_library.impl("favor_state_backward", kernels.chunked_favor_state_backward, "CompositeExplicitAutograd")
library.register_fake("protperf::favor", _favor_fake, lib=_library)
library.register_fake("protperf::favor_backward", _favor_backward_fake, lib=_library)
library.register_fake("protperf::favor_state", _favor_state_fake, lib=_library)
library.register_fake("protperf::favor_state_backward", _favor_state_backward_fake, lib=_library)
derivatives.define(_library)
