"""Attention as a module that owns its omega, and knows which draw it is.

omega is a function of the seed, the layer, the head and the number of the draw, and of the sampler and the norm. The
module keeps that key where every way of copying, averaging and loading a module finds it: as attributes, and as a small
buffer with a checksum (`draw_key`), which shows whether omega is what the module drew. Memory that was never filled, as
`to_empty`, `skip_init` and loaders that build on `meta` leave it, and buffers that were averaged with those of another
draw fail the checksum, and omega is drawn again before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from protperf import _arguments, feature_maps
from protperf._backends import check_backend
from protperf._feature_maps import find_map
from protperf.errors import ConfigError, DtypeError
from protperf.functional import draw_projection
from protperf.torch.features import check_epsilon
from protperf.torch.functional import favor_attention, favor_attention_with_state
from protperf.torch.memory import translate_out_of_memory
from protperf.torch.nn.draw_key import MAX_DRAW, DrawKey

__all__ = ["FavorAttention", "versions_of"]

_MAX_LAYER = 2**32 - 1


class FavorAttention(torch.nn.Module):
    """FAVOR+ attention without input or output projections.

    omega is a persistent buffer, [M,D] or, with `num_heads`, [H,M,D]. `redraw(draw)` replaces it: a training loop calls
    it between optimizer steps, and nothing else does. The state dictionary holds omega and the key of the draw
    (seed, layer, draw, sampler and norm), so that a module that was loaded goes on with the draws of the one that was
    saved; a dictionary from before there were keys is loaded with the module's own seed, layer and sampler.

    Args:
        head_dim: D.
        num_features: M, rows of omega.
        num_heads: an omega for each head; None shares one.
        feature_map: a name from `protperf.feature_maps()`.
        projection: False applies an activation map to queries and keys themselves. There is no omega then and nothing
            to draw, so all arguments about those say nothing, and M is D.
        kernel_epsilon: added to every feature of an activation map; None takes the map's own.
        causal: position i attends to positions <= i.
        seed: of omega, 0 to 2^64 - 1.
        layer: number of this layer in its network: layers with one seed draw different directions.
        sampler, norm: as in `protperf.draw_projection`.
        backend: what computes, as in `protperf.torch.favor_attention`.
        saves_key: whether the state dictionary holds the key. Without it the caller must know seed and draw.
        device, dtype: of omega; the default type, on the default device, unless given.

    Raises:
        DtypeError, ConfigError: an argument of the wrong kind or out of range.
    """

    # Both are None without a projection.
    omega: torch.Tensor
    draw_key: torch.Tensor

    def __init__(
        self,
        head_dim: int,
        num_features: int = 256,
        *,
        num_heads: int | None = None,
        feature_map: str = "positive",
        projection: bool = True,
        kernel_epsilon: float | None = None,
        causal: bool = False,
        seed: int = 0,
        layer: int = 0,
        sampler: str = "orthogonal",
        norm: str = "chi",
        backend: str = "auto",
        saves_key: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = _arguments.check_positive("head_dim", head_dim)
        self.num_features = _arguments.check_positive("num_features", num_features)
        self.num_heads = None if num_heads is None else _arguments.check_positive("num_heads", num_heads)
        self.feature_map = find_map(_arguments.check_name("feature_map", feature_map)).name
        self.projection = _arguments.check_flag("projection", projection)
        check_epsilon(self.feature_map, kernel_epsilon)
        self.kernel_epsilon = _arguments.check_epsilon(kernel_epsilon)
        self.causal = _arguments.check_flag("causal", causal)
        self.seed, self.layer = _arguments.check_integer("seed", seed), _arguments.check_integer("layer", layer)
        if not 0 <= self.layer <= _MAX_LAYER:
            raise ConfigError(f"layer is {layer}; it must be from 0 to 2^32 - 1")
        self.sampler, self.norm = _arguments.check_name("sampler", sampler), _arguments.check_name("norm", norm)
        self.backend = check_backend(backend)
        self.draw = 0
        self._known: tuple[int, ...] | None = None
        # Names and ranges are judged even where nothing is drawn.
        draw_projection(1, 1, sampler=self.sampler, norm=self.norm, seed=self.seed, stream=(self.layer, 0, 0))
        saves_key = _arguments.check_flag("saves_key", saves_key)
        if not self.projection:
            _check_activation(self.feature_map)
            self.num_features = self.head_dim
            self.register_buffer("omega", None)
            self.register_buffer("draw_key", None)
            return
        device, dtype = _device(device), _dtype(dtype)
        heads = () if self.num_heads is None else (self.num_heads,)
        shape = (*heads, self.num_features, self.head_dim)
        self.register_buffer("omega", torch.empty(shape, device=device, dtype=dtype))
        key = torch.empty(4, device=device, dtype=torch.int64)
        self.register_buffer("draw_key", key, persistent=saves_key)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw omega again; fills a module that was built on `meta` and given memory by `to_empty`."""
        if self.projection and not self.omega.is_meta:
            self._fill(self.draw)

    def redraw(self, draw: int) -> None:
        """Replace omega by draw number `draw` of the seed, in place and in its type.

        Raises:
            DtypeError: not an integer; ConfigError: not from 0 to 2^32 - 1, or a module without a projection.
        """
        if not self.projection:
            raise ConfigError("the module has projection=False, so it has no directions to draw")
        draw = _arguments.check_integer("draw", draw)
        if not 0 <= draw <= MAX_DRAW:
            raise ConfigError(f"draw is {draw}; it must be from 0 to 2^32 - 1")
        # A key that was loaded, or copied from another module, is that of the seed to go on with.
        self.check_omega()
        self._fill(draw)

    @translate_out_of_memory
    def _fill(self, draw: int) -> None:
        DrawKey(self.seed, self.layer, draw, (self.sampler, self.norm)).fill(self.omega)
        self.draw = draw
        self._write_key()

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        causal: bool | None = None,
        cu_seqlens: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Shapes and masks as in `protperf.torch.favor_attention`; `causal` None is the module's own."""
        self.check_omega()
        return favor_attention(
            q,
            k,
            v,
            self.omega,
            feature_map=self.feature_map,
            causal=self.causal if causal is None else causal,
            cu_seqlens=cu_seqlens,
            key_padding_mask=key_padding_mask,
            kernel_epsilon=self.kernel_epsilon,
            backend=self.backend,
        )

    def with_state(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        state: torch.Tensor | None = None,
        *,
        causal: bool = True,
        cu_seqlens: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and state after these keys, as `protperf.torch.favor_attention_with_state`."""
        self.check_omega()
        return favor_attention_with_state(
            q,
            k,
            v,
            self.omega,
            state,
            feature_map=self.feature_map,
            causal=causal,
            cu_seqlens=cu_seqlens,
            key_padding_mask=key_padding_mask,
            kernel_epsilon=self.kernel_epsilon,
            backend=self.backend,
        )

    def check_omega(self) -> None:
        """Draw omega again where it was never filled, or was averaged with another draw; `forward` calls this.

        Nothing is looked at unless a buffer has changed since. A compiled graph does not look.
        """
        if not self.projection or torch.compiler.is_compiling() or self.omega.is_meta:
            return
        versions = versions_of(self.omega, self.draw_key)
        if versions is not None and self._known == versions:
            return
        try:
            key = self.draw_key.tolist()
        except RuntimeError:
            # Stacked for torch.func.vmap: whoever stacked them had modules that were in order.
            return
        found = DrawKey.unpacked(key)
        if found is None:
            self._fill(self.draw)
        else:
            # Buffers copied from another module bring their key along.
            self.seed, self.layer, self.draw, kind = found
            self.sampler, self.norm = kind or (self.sampler, self.norm)
        self._known = versions_of(self.omega, self.draw_key)

    def extra_repr(self) -> str:
        """The arguments that differ between modules."""
        return (
            f"head_dim={self.head_dim}, num_features={self.num_features}, num_heads={self.num_heads}, "
            f"feature_map={self.feature_map!r}, projection={self.projection}, kernel_epsilon={self.kernel_epsilon}, "
            f"causal={self.causal}, seed={self.seed}, layer={self.layer}, "
            f"sampler={self.sampler!r}, norm={self.norm!r}, backend={self.backend!r}"
        )

    def _write_key(self) -> None:
        with torch.no_grad():
            key = DrawKey(self.seed, self.layer, self.draw, (self.sampler, self.norm))
            self.draw_key.copy_(torch.tensor(key.packed()))
        self._known = versions_of(self.omega, self.draw_key)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # New memory starts to count its changes anew, and may hold nothing yet (`to_empty`, `skip_init`).
        self._known = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.projection and not self.draw_key.is_meta:
            self.check_omega()
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        name = prefix + "draw_key"
        if not self.projection:
            return
        if prefix + "omega" not in state_dict or name in state_dict or self.omega.is_meta:
            return
        # Saved without a key: omega is taken on trust.
        if name in missing_keys:
            missing_keys.remove(name)
        if self.draw_key.is_meta:
            self.draw_key = torch.empty(4, dtype=torch.int64, device=self.omega.device)
        self._write_key()


def _check_activation(feature_map: str) -> None:
    """Refuse a map that has no meaning without directions."""
    if find_map(feature_map).family != "activation":
        names = ", ".join(name for name in feature_maps() if find_map(name).family == "activation")
        raise ConfigError(
            f"projection is False, but feature_map {feature_map!r} needs directions; choose one of {names}"
        )


def versions_of(*buffers: torch.Tensor) -> tuple[int, ...] | None:
    """How often buffers have changed; None where that is not counted, as in tensors made in inference mode."""
    if any(buffer.is_inference() for buffer in buffers):
        return None
    return tuple(buffer._version for buffer in buffers)


def _device(device: Any) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device is {device!r}, which torch does not know: {error}") from None


def _dtype(dtype: Any) -> torch.dtype:
    if dtype is None:
        return torch.get_default_dtype()
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DtypeError(f"dtype is {dtype!r}; omega needs a floating type, such as torch.float32")
    return dtype
