"""Where a classification head starts: at the nearest class mean of the base's own features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.methods.build import final_linear
from tasks.training.base import Base, seeded
from tasks.training.encoding import Encoded, collate

FEATURE_BATCH = 64
NOISY_ROWS = 512


def start_head_from_class_means(base: Base, model: Any, rows: Sequence[Encoded], limit: int = 4000) -> None:
    """Set the head so that it picks the class whose mean feature is nearest, over at most `limit` rows.

    With the adapter still at zero this is the untouched base's own answer, the yardstick that an adapter must beat, and
    a far better start than chance.
    """
    _, head = final_linear(model)
    x, y = _features(base, model, head, rows[:limit])
    noisy, _ = _features(base, model, head, rows[: min(limit, NOISY_ROWS)], dropout=True)
    weight, bias = class_mean_head(x, y, len(base.labels), noisy)
    if head.bias is None:
        weight, bias = weight + bias[:, None] * _constant_direction(x), torch.zeros_like(bias)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(bias)


def class_mean_head(x: Tensor, y: Tensor, classes: int, noisy: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The linear head of a nearest-centroid classifier, as sure of itself as it is right.

    Snell et al. 2017, arXiv:1703.05175, section 2.4: -|x - m|^2 / 2 is linear in x up to a term that all classes share.
    The factor on the logits is the one with the least cross entropy when each row is left out of its own class mean; a
    class of one row is then at the mean of all.

    Args:
        x: features (rows, hidden).
        y: class indexes (rows,).
        noisy: the first rows' features under the base's own dropout, which training will meet; `x` by default.

    Returns:
        weight (classes, hidden) and bias (classes,).
    """
    centre = x.mean(0)
    z = x - centre
    counts = torch.bincount(y, minlength=classes).clamp_min(1)[:, None]
    means = torch.zeros(classes, x.shape[1]).to(x).index_add_(0, y, z) / counts  # (classes, hidden), about the centre
    without = (counts[y] * means[y] - z) / (counts[y] - 1).clamp_min(1)  # (rows, hidden)
    z = (x if noisy is None else noisy) - centre
    y, without = y[: len(z)], without[: len(z)]
    logits = z @ means.T - means.pow(2).sum(1) / 2  # (rows, classes)
    logits[torch.arange(len(y)), y] = (z * without).sum(1) - without.pow(2).sum(1) / 2
    factors = torch.logspace(-2, 2, 41) / logits.std().clamp_min(1e-12).cpu()
    losses = torch.stack([F.cross_entropy(logits * factor, y) for factor in factors.tolist()])
    factor = factors[int(losses.argmin())].item()
    weight = means * factor
    return weight, -(weight @ centre) - (weight * means).sum(1) / 2


def _constant_direction(x: Tensor) -> Tensor:
    """The direction (hidden,) along which every row is as near to 1 as can be, by ridge regression: there a head that
    has no bias reads it."""
    gram = x.T @ x
    ridge = 0.1 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    return torch.linalg.solve(gram + ridge, x.sum(0))


def _features(
    base: Base, model: Any, head: nn.Module, rows: Sequence[Encoded], *, dropout: bool = False
) -> tuple[Tensor, Tensor]:
    """What the head's last layer reads (rows, hidden), float32, and the class indexes (rows,)."""
    read: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].detach().float()))
    pooled, classes = [], []
    was_training = model.training
    model.train(dropout)
    try:
        with torch.no_grad(), base.autocast(), seeded(base.device, 0):
            for start in range(0, len(rows), FEATURE_BATCH):
                inputs, labels = collate(base, rows[start : start + FEATURE_BATCH])
                read.clear()
                model(**inputs)
                value = read[0]
                if value.dim() == 3:  # decoders score every position; the last real token decides
                    value = value[torch.arange(len(value)), inputs["attention_mask"].sum(1) - 1]
                pooled.append(value)
                classes.append(labels)
    finally:
        hook.remove()
        model.train(was_training)
    return torch.cat(pooled), torch.cat(classes)
