"""Attention in float32 inside a model that computes in bfloat16, for training on a CPU.

The matrix products gain from bfloat16 there, but the backward pass of its attention kernel takes two to six times as
long as in float32 at the lengths of messages (48 to 200 tokens), longer than all products together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "sdpa_float32"  # transformers takes the part before the underscore for what the model must support


def use_float32_attention(model: Any) -> None:
    """Let a model that uses torch's attention kernel use it in float32 wherever a gradient is wanted."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


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
