"""LoRA's two small products in few passes over memory: the same numbers as PEFT's layers, with another dropout draw.

On a CPU PEFT spends more time on dropout, scaling and adding than on the products themselves, and keeps eight bytes per
input element for the backward pass. Here dropout costs sixteen random bits per element, its factor and LoRA's scale are
applied to r columns, the sum happens inside the product, and one byte per element is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

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
    plain = [module for module in model.modules() if is_plain(module)]
    for module in plain:
        module.forward = partial(_forward, module)
    return len(plain)


def is_plain(module: nn.Module) -> bool:
    """Whether it is a linear LoRA layer on a CPU that is computed as below."""
    from peft.tuners.lora import LoraLayer

    return (
        isinstance(module, LoraLayer)
        and list(module.lora_A) == module.active_adapters == ["default"]
        and not module.lora_variant
        and isinstance(module.lora_A["default"], nn.Linear | nn.Parameter)
        and getattr(module.lora_B["default"], "bias", None) is None
        and next(module.lora_A.parameters()).device.type == "cpu"
    )


def _forward(layer: Any, x: Tensor) -> Tensor:
    A, B, scale = factors_of(layer)
    return updated(x, layer.base_layer(x), A, B, scale, dropped_share(layer))


def factors_of(layer: Any) -> tuple[Tensor, Tensor, float]:
    """(A, B, scale); AdaLoRA's singular values stand in A."""
    A, B, scale = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]
    if isinstance(A, nn.Parameter):
        return A * layer.lora_E["default"], B, scale / (float(layer.ranknum["default"]) + 1e-5)
    return A.weight, B.weight, scale


def dropped_share(layer: Any) -> float:
    """Of what a layer reads, while it is trained."""
    dropout = layer.lora_dropout["default"]
    return dropout.p if layer.training and isinstance(dropout, nn.Dropout) else 0.0


class Span(NamedTuple):
    """Rows [start, stop) of one adapter, its scale, its share of dropout, and its own chance (None: torch's)."""

    start: int
    stop: int
    scale: float
    share: float
    chance: torch.Generator | None = None


def updated(x: Tensor, y: Tensor, A: Tensor, B: Tensor, scale: float, share: float) -> Tensor:
    """y + scale * dropout(x) A^T B^T, with x (..., in), y (..., out), A (r, in), B (out, r)."""
    return LowRankUpdates.apply(x, y, (Span(0, x.numel() // x.shape[-1], scale, share),), A, B)


class LowRankUpdates(Function):
    """The same for the rows of several adapters one after another: `factors` are A and B of each span in turn; rows of
    no span are as they were."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, spans: Sequence[Span], *factors: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else factors[0].dtype
        with torch.autocast("cpu", enabled=False):
            rows, below = x.reshape(-1, x.shape[-1]).to(kind), y.reshape(-1, y.shape[-1])
            covered = sum(span.stop - span.start for span in spans)
            above = torch.empty_like(below) if covered == len(below) else below.clone()
            lows, masks = [], []
            near = [factor.to(kind) for factor in factors]
            for span, A, B in zip(spans, near[::2], near[1::2], strict=True):
                here = slice(span.start, span.stop)
                kept = kept_by_dropout(rows[here].shape, span.share, span.chance) if span.share else None
                left = rows[here] if kept is None else rows[here] * kept.to(kind)
                # what is kept grows, so that the mean stays
                low = (left @ A.T).mul_(span.scale / (1 - span.share))  # (rows, r)
                if y.dtype == kind:
                    torch.addmm(below[here], low, B.T, out=above[here])
                else:
                    torch.add(below[here], (low @ B.T).to(y.dtype), out=above[here])
                lows.append(low)
                masks.append(kept)
        ctx.spans, ctx.kinds = spans, [factor.dtype for factor in factors]
        ctx.save_for_backward(x, *near, *lows, *masks)
        return above.view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        spans, count = ctx.spans, len(ctx.spans)
        x, *saved = ctx.saved_tensors
        factors, lows, masks = saved[: 2 * count], saved[2 * count : 3 * count], saved[3 * count :]
        kind, grads, grad_x = lows[0].dtype, [], None
        with torch.autocast("cpu", enabled=False):
            above, rows = grad.reshape(-1, grad.shape[-1]).to(kind), x.reshape(-1, x.shape[-1]).to(kind)
            if ctx.needs_input_grad[0]:
                covered = sum(span.stop - span.start for span in spans)
                grad_x = torch.empty_like(rows) if covered == len(rows) else torch.zeros_like(rows)
            for span, A, B, low, kept in zip(spans, factors[::2], factors[1::2], lows, masks, strict=True):
                here = slice(span.start, span.stop)
                grad_low = (above[here] @ B).mul_(span.scale / (1 - span.share))
                mask = None if kept is None else kept.to(kind)
                grad_A = grad_low.T @ (rows[here] if mask is None else rows[here] * mask)
                grads += [grad_A, above[here].T @ low]
                if grad_x is not None:
                    torch.mm(grad_low, A, out=grad_x[here])
                    if mask is not None:
                        grad_x[here].mul_(mask)
            grad_x = None if grad_x is None else grad_x.view(x.shape).to(x.dtype)
        return grad_x, grad, None, *(grad.to(kind) for grad, kind in zip(grads, ctx.kinds, strict=True))


def kept_by_dropout(shape: tuple[int, ...], share: float, chance: torch.Generator | None = None) -> Tensor:
    """1 with probability 1 - share (to a 32768th) and 0 otherwise; four elements per draw of the generator.

    Arithmetic on int16 and a result of int8: torch's comparisons and casts of bool are three times slower on a CPU.

    >>> with torch.random.fork_rng(devices=[]):
    ...     round(kept_by_dropout((1000, 1000), 0.05).float().mean().item(), 2)
    0.95
    """
    count = int(torch.Size(shape).numel())
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(generator=chance).view(torch.int16)[:count]
    below = drawn.bitwise_and_(HIGHEST_DRAW).sub_(round(share * (HIGHEST_DRAW + 1)))  # negative where dropped
    return below.bitwise_right_shift_(15).add_(1).to(torch.int8).view(shape)
