"""Rules whose result is a sum of the updates with one factor per parent and module: mean, task arithmetic, SLERP,
Model Stock. The sum has the parents' rank together, so it is exact in factors.

What a factor may depend on is the parents' Gram matrix in the module, G_ij = <dW_i, dW_j>; it is read from the factors,
(B_i A_i, B_j A_j) = <B_j^T B_i, A_j A_i^T>, without a dense matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.merging.consensus import Ask
from tasks.merging.stack import Stack

if TYPE_CHECKING:
    from torch import Tensor

Factors = tuple["Tensor", "Tensor"]
Shares = Callable[[Stack], list[float]]
COLLINEAR = 1e-8  # sine of an angle under which two updates count as one direction


def blend_factors(stack: Stack, ask: Ask, *, shares: Shares) -> Factors:
    """[c_1 s_1 B_1 ...] and [A_1; ...]: their product is the sum, exactly, at rank R."""
    import torch

    pairs = stack.factors() or []
    left = [share * B for share, (B, _) in zip(shares(stack), pairs, strict=True)]
    return torch.cat(left, 1), torch.cat([A for _, A in pairs])


def blend_dense(stack: Stack, ask: Ask, *, shares: Shares) -> Tensor:
    """The sum of changes without factors, in float64."""
    import torch

    total = torch.zeros(stack.shape, dtype=torch.float64)
    for share, update in zip(shares(stack), stack.updates, strict=True):
        total += share * update.delta(stack.name).double()
    return total.float()


def summed(stack: Stack) -> list[float]:
    """The weights themselves."""
    return list(stack.weights)


def averaged(stack: Stack) -> list[float]:
    """The weights over those of all parents, also of those that leave the module alone."""
    return [weight / stack.total_weight for weight in stack.weights]


def slerp(stack: Stack) -> list[float]:
    """Along the great circle between two updates (Shoemake 1985): sin((1 - t) a) / sin a and sin(t a) / sin a, with the
    angle a between them and t the second's share of the weights.

    The norm stays between the two where a mean would shrink it. A parent that leaves the module alone stands at a right
    angle. Updates of one direction are averaged.
    """
    t = averaged(stack)
    gram = gram_matrix(stack)
    cosine = 0.0 if len(t) < 2 else _cosine(gram, 0, 1)
    angle = math.acos(cosine)
    if math.sin(angle) <= COLLINEAR:
        return t
    return [math.sin(share * angle) / math.sin(angle) for share in t]


def model_stock(stack: Stack) -> list[float]:
    """Model Stock (Jang et al. 2024, arXiv:2403.19522, equation 4): the mean times N c / (1 + (N - 1) c), with c the
    mean cosine between the parents.

    The factor takes what the parents share for signal and the rest for noise, so it is meant for several trainings of
    one task; updates of unrelated tasks have c near 0, and little is left of them.
    """
    count = stack.parents
    if count == 1:
        return averaged(stack)
    gram = gram_matrix(stack)
    pairs = itertools.combinations(range(len(stack.updates)), 2)
    cosine = math.fsum(_cosine(gram, i, j) for i, j in pairs) / math.comb(count, 2)
    under = 1 + (count - 1) * cosine
    factor = 0.0 if abs(under) < 1e-6 else count * cosine / under
    return [factor * share for share in averaged(stack)]


def gram_matrix(stack: Stack) -> list[list[float]]:
    """<dW_i, dW_j> of the parents that change the module, in float64."""
    import torch

    pairs = stack.factors()
    if pairs is not None:
        return [[float(((Bj.T @ Bi) * (Aj @ Ai.T)).sum()) for Bj, Aj in pairs] for Bi, Ai in pairs]
    flat = torch.stack([update.delta(stack.name).double().reshape(-1) for update in stack.updates])
    return (flat @ flat.T).tolist()


def _cosine(gram: list[list[float]], i: int, j: int) -> float:
    size = math.sqrt(max(gram[i][i], 0.0) * max(gram[j][j], 0.0))
    return max(-1.0, min(1.0, gram[i][j] / size)) if size > 0 else 0.0
