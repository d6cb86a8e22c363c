"""Rules whose result has low rank by itself: weighted sums, KnOTS and Iso-C, computed on the factors alone.

R is the sum of the parents' ranks. Every dense matrix here has a side of R; a parent without factors (DoRA) sends the
rule through the dense form of the same equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.merging.algebra import disjoint_merge, kept_entries, magnitude_of_rank, trim
from tasks.merging.consensus import Ask
from tasks.merging.factors import NUMERICAL_RANK_OF_FLOAT32, numerical_rank, product, thin_svd
from tasks.merging.stack import Stack

if TYPE_CHECKING:
    from torch import Tensor

Factors = tuple["Tensor", "Tensor"]


def linear_factors(stack: Stack, ask: Ask, *, mean: bool) -> Factors:
    """[w_1 s_1 B_1 ...] and [A_1; ...]: their product is the weighted sum, exactly, at rank R."""
    import torch

    over = stack.total_weight if mean else 1.0
    pairs = stack.factors() or []
    left = [weight / over * B for weight, (B, _) in zip(stack.weights, pairs, strict=True)]
    return torch.cat(left, 1), torch.cat([A for _, A in pairs])


def linear_dense(stack: Stack, ask: Ask, *, mean: bool) -> Tensor:
    """The weighted sum of changes without factors, summed in float64."""
    import torch

    total = torch.zeros(stack.shape, dtype=torch.float64)
    for weight, update in zip(stack.weights, stack.updates, strict=True):
        total += weight * update.delta(stack.name).double()
    return (total / (stack.total_weight if mean else 1.0)).float()


def knots_factors(stack: Stack, ask: Ask) -> Factors:
    """KnOTS (Stoica et al. 2024, arXiv:2410.19735): TIES in the basis that the parents share.

    [dW_1 ... dW_N] = U S [V_1 ... V_N]^T; the coordinates S V_i^T = U^T dW_i of each parent are merged, and U carries
    the result back. With B = [s_i B_i] = Q T and A_i = L_i Q_i^T, U is Q times the left singular vectors of the R x R
    matrix [T_i L_i], and U^T dW_i = (U^T Q T_i) A_i.
    """
    import torch

    pairs = stack.factors() or []
    frame, upper = torch.linalg.qr(torch.cat([B for B, _ in pairs], 1))
    pieces = upper.split([A.shape[0] for _, A in pairs], 1)
    core = torch.cat([piece @ torch.linalg.qr(A.T)[1].T for piece, (_, A) in zip(pieces, pairs, strict=True)], 1)
    turn, values, _ = torch.linalg.svd(core, full_matrices=False)
    turn = turn[:, : numerical_rank(values)]
    coordinates = [turn.T @ piece @ A for piece, (_, A) in zip(pieces, pairs, strict=True)]
    return frame @ turn, _merged_coordinates(coordinates, stack, ask).double()


def knots_dense(stack: Stack, ask: Ask) -> Tensor:
    """The same from dense changes: U are the eigenvectors of the sum of dW_i dW_i^T."""
    import torch

    deltas = [update.delta(stack.name).double() for update in stack.updates]
    values, vectors = torch.linalg.eigh(torch.stack([delta @ delta.T for delta in deltas]).sum(0))
    U = vectors[:, values > NUMERICAL_RANK_OF_FLOAT32**2 * values[-1]]  # eigenvalues are squared singular values
    merged = _merged_coordinates([U.T @ delta for delta in deltas], stack, ask)
    return product(U, merged.double())


def _merged_coordinates(coordinates: Sequence[Tensor], stack: Stack, ask: Ask) -> Tensor:
    """TIES over each parent's (R, in) coordinates."""
    rounded = [own.float() for own in coordinates]
    entries = rounded[0].numel()
    count = kept_entries(entries, ask.density)
    thresholds = [
        0.0 if count == entries else magnitude_of_rank(own.abs().reshape(-1).numpy(), count) for own in rounded
    ]
    return disjoint_merge(trim(rounded, thresholds), stack.weights)


def iso_factors(stack: Stack, ask: Ask) -> Factors:
    """Iso-C (Marczak et al. 2025, arXiv:2502.04959): the weighted sum with all its singular values set to their mean,
    over the R directions that it has."""
    U, values, Vt = thin_svd(*linear_factors(stack, ask, mean=False))
    return U * values.mean(), Vt


def iso_dense(stack: Stack, ask: Ask) -> Tensor:
    """The same from dense changes; a DoRA update has all min(out, in) directions."""
    import torch

    U, values, Vt = torch.linalg.svd(linear_dense(stack, ask, mean=False).double(), full_matrices=False)
    rank = numerical_rank(values, NUMERICAL_RANK_OF_FLOAT32)
    return product(U[:, :rank] * values[:rank].mean(), Vt[:rank])
