"""Models with softmax attention turned into Performers with their weights, and back.

Two kinds of models are known: those of Hugging Face transformers, whose attention is looked up by a name in the
configuration, and those that contain `torch.nn.MultiheadAttention`. Weights are neither copied nor changed.
"""

from __future__ import annotations

from typing import Any

import torch

from protperf.errors import ConfigError
from protperf.torch.nn.core import attention_core
from protperf.torch.nn.multihead import MultiheadAttention

__all__ = ["replace_attention", "restore_attention"]

_NAME = "protperf"
"""Under which transformers finds the attention below."""
_CORE = "protperf_core"
"""The submodule that an attention module of transformers gets."""


def replace_attention(model: torch.nn.Module, **attention: Any) -> torch.nn.Module:
    """Replace softmax attention in a model, in place, and return it.

    Each layer gets an omega of its own, drawn from one seed. A model that is already changed is changed again.

    Args:
        attention: the arguments of `protperf.torch.nn.attention_core`: `feature_map` (`exact` is softmax itself),
            `num_features`, `seed` and others.

    Raises:
        ConfigError: the model has no attention that is known, or has dropout of attention weights and is not of
            transformers (there it is refused when a training step asks for it).
    """
    restore_attention(model)
    modules = _attention_modules(model) if _is_of_transformers(model) else {}
    for layer, module in enumerate(modules.values()):
        heads = module.config.num_attention_heads  # type: ignore[union-attr]
        parameter = next(module.parameters())
        core = attention_core(_head_dim(module), heads, layer=layer, **attention)  # type: ignore[arg-type]
        module.add_module(_CORE, core.to(parameter.device, parameter.dtype).train(module.training))
    if modules:
        _register()
        model._attention_before = model.config._attn_implementation  # type: ignore[union-attr]
        model.set_attn_implementation(_NAME)  # type: ignore[operator]
        return model
    found = {name: x for name, x in model.named_modules() if type(x) is torch.nn.MultiheadAttention}
    if not found:
        raise ConfigError(f"{type(model).__name__} has no attention that can be replaced")
    for layer, (name, module) in enumerate(found.items()):
        _put(model, name, MultiheadAttention.like(module, layer=layer, **attention))
    return model


def restore_attention(model: torch.nn.Module) -> torch.nn.Module:
    """Undo `replace_attention`, in place; a model that was not changed stays as it is."""
    for module in model.modules():
        if hasattr(module, _CORE):
            delattr(module, _CORE)
    if hasattr(model, "_attention_before"):
        model.set_attn_implementation(model._attention_before)  # type: ignore[operator]
        del model._attention_before
    for name, module in list(model.named_modules()):
        if isinstance(module, MultiheadAttention):
            _put(model, name, module.as_torch())
    return model


def _put(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _is_of_transformers(model: torch.nn.Module) -> bool:
    return hasattr(model, "set_attn_implementation")


def _attention_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Modules that look their attention up: they say whether it is causal, and how wide a head is."""
    return {name: x for name, x in model.named_modules() if hasattr(x, "is_causal") and _head_dim(x) is not None}


def _head_dim(module: torch.nn.Module) -> int | None:
    return getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _padding_mask)


def _padding_mask(*_: Any, kv_length: int, attention_mask: torch.Tensor | None = None, **__: Any) -> Any:
    """What transformers hands to `_attend` as the mask: [B,S], True where a key counts, or None."""
    return None if attention_mask is None else attention_mask[:, -kv_length:].bool()


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: heads [B,H,L,D] in, [B,L,H,E] out."""
    if dropout:
        raise ConfigError(f"attention dropout is {dropout}, but linear attention has no weights to drop; set it to 0")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    q_len, kv_len = query.shape[2], key.shape[2]
    if causal and q_len != kv_len and q_len != 1:
        raise ConfigError(f"{q_len} queries after {kv_len - q_len} cached keys; call with use_cache=False")
    if scaling is not None:
        query = query * (scaling * query.shape[3] ** 0.5)
    padding = None if attention_mask is None else ~attention_mask
    core = module.get_submodule(_CORE)
    out = core(query, key, value, causal=causal and q_len == kv_len, key_padding_mask=padding)
    return out.transpose(1, 2).contiguous(), None
