"""Attention in float32 inside a model that computes in bfloat16, for training on a CPU.

The matrix products gain from bfloat16 there, but the backward pass of its attention kernel takes two to six times as
long as in float32 at the lengths of messages (48 to 200 tokens), longer than all products together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_float32"  # transformers takes the part before the underscore for what the model must support
APART = "sdpa_apart"


def use_float32_attention(model: Any) -> None:
    """Let a model that uses torch's attention kernel use it in float32 wherever a gradient is wanted."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def use_attention_apart(model: Any) -> None:
    """Let each of several batches that stand one after another in one row, (1, tokens), attend to itself alone.

    The model is called with `batches`, the (rows, width) of each, padded on the right: causal attention needs no mask
    for that. In bfloat16 it computes as above.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(APART, _apart)
    AttentionMaskInterface.register(APART, lambda *_, **__: None)
    model.set_attn_implementation(APART)


def _apart(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, batches: Any, **others: Any
) -> tuple[Tensor, None]:
    """query (1, heads, tokens, width of a head); the answer (1, tokens, heads, width of a head)."""
    sizes = [rows * width for rows, width in batches]
    found = []
    split = [side.squeeze(0).split(sizes, dim=1) for side in (query, key, value)]  # (heads, tokens, width of a head)
    for batch, *sides in zip(batches, *split, strict=True):
        own = (side.unflatten(1, batch).transpose(0, 1) for side in sides)  # (rows, heads, width, width of a head)
        found.append(_attention(module, *own, None, **others)[0].flatten(0, 1))  # type: ignore[call-arg]
    return torch.cat(found)[None], None


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """The signature is that of transformers' attention functions; query (batch, heads, time, width)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not torch.is_grad_enabled():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        mixed, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **others)
    return mixed.to(query.dtype), None
