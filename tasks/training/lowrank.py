"""LoRA's two small products in few passes over memory: the same numbers as PEFT's layers, with another dropout draw.

On a CPU PEFT spends more time on dropout, scaling and adding than on the products themselves, and keeps eight bytes per
input element for the backward pass. Here dropout costs sixteen random bits per element, its factor and LoRA's scale are
applied to r columns, the sum happens inside the product, and one byte per element is kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

HIGHEST_DRAW = (1 << 15) - 1


def compute_in_few_passes(model: nn.Module) -> int:
    """Let every plain linear LoRA layer of a model on a CPU compute as below; returns how many that are.

    Embeddings, convolutions, and layers with a variant (DoRA), a bias of their own or several adapters keep PEFT's way,
    and so does a GPU, where PEFT's dropout is one kernel.
    """
    from peft.tuners.lora import LoraLayer

    plain = [
        module
        for module in model.modules()
        if isinstance(module, LoraLayer)
        and list(module.lora_A) == module.active_adapters == ["default"]
        and not module.lora_variant
        and isinstance(module.lora_A["default"], nn.Linear | nn.Parameter)
        and getattr(module.lora_B["default"], "bias", None) is None
        and next(module.lora_A.parameters()).device.type == "cpu"
    ]
    for module in plain:
        module.forward = partial(_forward, module)
    return len(plain)


def _forward(layer: Any, x: Tensor) -> Tensor:
    dropout = layer.lora_dropout["default"]
    share = dropout.p if layer.training and isinstance(dropout, nn.Dropout) else 0.0
    return LowRankUpdate.apply(x, layer.base_layer(x), *_factors(layer), share)


def _factors(layer: Any) -> tuple[Tensor, Tensor, float]:
    """(A, B, scale); AdaLoRA's singular values stand in A."""
    A, B, scale = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]
    if isinstance(A, nn.Parameter):
        return A * layer.lora_E["default"], B, scale / (float(layer.ranknum["default"]) + 1e-5)
    return A.weight, B.weight, scale


class LowRankUpdate(Function):
    """y + scale * dropout(x) A^T B^T, with x (..., in), y (..., out), A (r, in), B (out, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, A: Tensor, B: Tensor, scale: float, share: float) -> Tensor:
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else A.dtype
        with torch.autocast("cpu", enabled=False):
            rows = x.reshape(-1, x.shape[-1]).to(kind)
            kept = kept_by_dropout(rows.shape, share) if share else None
            left = rows if kept is None else rows * kept.to(kind)
            ctx.scale = scale / (1 - share)  # what is kept grows, so that the mean stays
            low = (left @ A.to(kind).T).mul_(ctx.scale)  # (rows, r)
            ctx.save_for_backward(x, A, B, low, kept)
            if y.dtype == kind:
                return torch.addmm(y.reshape(-1, y.shape[-1]), low, B.to(kind).T).view(y.shape)
            return y + (low @ B.to(kind).T).view(y.shape).to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, low, kept = ctx.saved_tensors
        kind = low.dtype
        with torch.autocast("cpu", enabled=False):
            above = grad.reshape(-1, grad.shape[-1]).to(kind)
            grad_B = above.T @ low
            grad_low = (above @ B.to(kind)).mul_(ctx.scale)
            rows = x.reshape(-1, x.shape[-1]).to(kind)
            mask = None if kept is None else kept.to(kind)
            grad_A = grad_low.T @ (rows if mask is None else rows * mask)
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = grad_low @ A.to(kind)
                grad_x = (grad_x if mask is None else grad_x.mul_(mask)).view(x.shape).to(x.dtype)
        return grad_x, grad, grad_A.to(A.dtype), grad_B.to(B.dtype), None, None


def kept_by_dropout(shape: tuple[int, ...], share: float) -> Tensor:
    """1 with probability 1 - share (to a 32768th) and 0 otherwise; four elements per draw of the generator.

    Arithmetic on int16 and a result of int8: torch's comparisons and casts of bool are three times slower on a CPU.

    >>> with torch.random.fork_rng(devices=[]):
    ...     round(kept_by_dropout((1000, 1000), 0.05).float().mean().item(), 2)
    0.95
    """
    count = int(torch.Size(shape).numel())
    chance = torch.empty(-(-count // 4), dtype=torch.int64).random_().view(torch.int16)[:count]
    below = chance.bitwise_and_(HIGHEST_DRAW).sub_(round(share * (HIGHEST_DRAW + 1)))  # negative where dropped
    return below.bitwise_right_shift_(15).add_(1).to(torch.int8).view(shape)
