"""Rules that rebuild the singular values or the singular vectors of the merged update: Iso-C and TSV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.merging.blends import blend_dense, blend_factors, summed
from tasks.merging.consensus import Ask
from tasks.merging.factors import NUMERICAL_RANK_OF_FLOAT32, numerical_rank, product, thin_svd
from tasks.merging.stack import Stack

if TYPE_CHECKING:
    from torch import Tensor

Factors = tuple["Tensor", "Tensor"]
Triple = tuple["Tensor", "Tensor", "Tensor"]


def iso_factors(stack: Stack, ask: Ask) -> Factors:
    """Iso-C (Marczak et al. 2025, arXiv:2502.04959): the weighted sum with all its singular values set to their mean,
    over the R directions that it has."""
    U, values, Vt = thin_svd(*blend_factors(stack, ask, shares=summed))
    return U * values.mean(), Vt


def iso_dense(stack: Stack, ask: Ask) -> Tensor:
    """The same from dense changes; a DoRA update has all min(out, in) directions."""
    U, values, Vt = _dense_svd(blend_dense(stack, ask, shares=summed))
    return product(U * values.mean(), Vt)


def tsv_factors(stack: Stack, ask: Ask) -> Factors:
    """TSV-Merge (Gargiulo et al. 2025, arXiv:2412.00081, section 4): the parents' singular vectors side by side, made
    orthogonal together, carry the parents' own singular values.

    dW = U' S V'^T with S the weighted singular values of all parents and U', V' the nearest partial isometries to [U_1
    ... U_N] and [V_1 ... V_N]. Each parent keeps its min(out, in) / N largest, as in the paper; adapters seldom have as
    many. A second copy of a parent adds nothing, where the paper's full Procrustes problem has no unique answer.
    """
    return _without_interference([thin_svd(B, A) for B, A in stack.factors() or []], stack)


def tsv_dense(stack: Stack, ask: Ask) -> Tensor:
    """The same from dense changes."""
    return product(*_without_interference([_dense_svd(update.delta(stack.name)) for update in stack.updates], stack))


def _without_interference(parents: list[Triple], stack: Stack) -> Factors:
    import torch

    kept = max(1, min(stack.shape) // stack.parents)
    U = torch.cat([U[:, :kept] for U, _, _ in parents], 1)
    V = torch.cat([Vt[:kept].T for _, _, Vt in parents], 1)
    values = [weight * own[:kept] for weight, (_, own, _) in zip(stack.weights, parents, strict=True)]
    return _nearest_isometry(U) * torch.cat(values), _nearest_isometry(V).T


def _nearest_isometry(columns: Tensor) -> Tensor:
    """P Q^T of columns = P D Q^T, over the directions that are more than rounding."""
    import torch

    P, values, Qt = torch.linalg.svd(columns, full_matrices=False)
    rank = numerical_rank(values, NUMERICAL_RANK_OF_FLOAT32)
    return P[:, :rank] @ Qt[:rank]


def _dense_svd(delta: Tensor) -> Triple:
    """The SVD of a change that was rounded to float32, up to its numerical rank."""
    import torch

    U, values, Vt = torch.linalg.svd(delta.double(), full_matrices=False)
    rank = numerical_rank(values, NUMERICAL_RANK_OF_FLOAT32)
    return U[:, :rank], values[:rank], Vt[:rank]
