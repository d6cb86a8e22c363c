"""Rules entry by entry, in coordinates that the parents share: KnOTS and the core space.

    KnOTS   [dW_1 ... dW_N] = U S V^T, coordinates U^T dW_i    (k, in)   Stoica et al. 2024, arXiv:2410.19735
    core    the same with V of [dW_1; ...; dW_N] too, U^T dW_i V (k, l)   Panariello et al. 2025, arXiv:2509.17786

Any entrywise rule merges the coordinates as if they were small updates, and the bases carry the result back, which has
rank R at most, the sum of the parents' ranks. A linear rule gives the plain weighted sum in any basis, so only the
others are worth a row. Both bases come from the updates, not from their factors, so that the gauge does not show.

With factors every matrix has a side of R; a parent without (DoRA) sends the rule through the dense form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.merging.consensus import Ask
from tasks.merging.factors import (
    NUMERICAL_RANK_OF_FLOAT32,
    SAFE_EIGENVALUE,
    cholesky_of_rows,
    numerical_rank,
    product,
)
from tasks.merging.stack import Held, Stack, Thin

if TYPE_CHECKING:
    from torch import Tensor

Factors = tuple["Tensor", "Tensor"]
Inner = Callable[[Stack, Ask], "Tensor"]


def knots_factors(stack: Stack, ask: Ask, *, inner: Inner) -> Factors:
    """U and the merged (k, in) coordinates."""
    pairs = stack.factors() or []
    frame, inside = shared_basis(pairs)
    # float32 is what the inner rule reads; a product of two factors cancels nothing
    coordinates = [Thin(left.float(), A.float()) for left, (_, A) in zip(inside, pairs, strict=True)]
    return frame, merged_inside(stack, ask, coordinates, inner)


def knots_dense(stack: Stack, ask: Ask, *, inner: Inner) -> Tensor:
    """The same from dense changes."""
    deltas = [update.delta(stack.name).double() for update in stack.updates]
    U = _dense_basis(deltas)
    return product(U, merged_inside(stack, ask, [Held((U.T @ delta).float()) for delta in deltas], inner))


def core_factors(stack: Stack, ask: Ask, *, inner: Inner) -> Factors:
    """U and the merged (k, l) coordinates times V^T."""
    pairs = stack.factors() or []
    U, left = shared_basis(pairs)
    V, right = shared_basis([(A.T, B.T) for B, A in pairs])
    coordinates = [Thin(one.float(), two.T.float()) for one, two in zip(left, right, strict=True)]
    return U, merged_inside(stack, ask, coordinates, inner) @ V.T


def core_dense(stack: Stack, ask: Ask, *, inner: Inner) -> Tensor:
    """The same from dense changes."""
    deltas = [update.delta(stack.name).double() for update in stack.updates]
    U, V = _dense_basis(deltas), _dense_basis([delta.T for delta in deltas])
    coordinates = [Held((U.T @ delta @ V).float()) for delta in deltas]
    return product(U, merged_inside(stack, ask, coordinates, inner) @ V.T)


def shared_basis(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """U (out, k), the left singular vectors of [B_1 A_1 ... B_N A_N] up to the numerical rank, and each U^T B_i (k,
    rank).

    With [B_1 ... B_N] = Q [T_1 ... T_N] and A_i = L_i Q_i^T, U is Q times the left singular vectors of the R x R matrix
    [T_1 L_1 ... T_N L_N].
    """
    import torch

    fast = _basis_through_grams(pairs)
    if fast is not None:
        return fast
    frame, upper = torch.linalg.qr(torch.cat([B for B, _ in pairs], 1))
    pieces = upper.split([A.shape[0] for _, A in pairs], 1)
    core = torch.cat([piece @ torch.linalg.qr(A.T)[1].T for piece, (_, A) in zip(pieces, pairs, strict=True)], 1)
    turn, values, _ = torch.linalg.svd(core, full_matrices=False)
    turn = turn[:, : numerical_rank(values)]
    return frame @ turn, [turn.T @ piece for piece in pieces]


def _basis_through_grams(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]] | None:
    """The same from Gram matrices alone, or None where squaring would cost digits. With B^T B = L L^T, U is B L^-T W, W
    the eigenvectors of L^T diag(A_i A_i^T) L."""
    import torch

    B = torch.cat([B for B, _ in pairs], 1)
    found = cholesky_of_rows(B.T)
    if found is None:
        return None
    lower, norms = found
    inside = torch.block_diag(*(A @ A.T for _, A in pairs)) * norms * norms[:, None]
    squares, turn = torch.linalg.eigh(lower.T @ inside @ lower)
    if not squares[0] > SAFE_EIGENVALUE * squares[-1]:
        return None
    turn = turn.flip(1)
    back = torch.linalg.solve_triangular(lower.T, turn, upper=True) / norms[:, None]
    return B @ back, list(((lower @ turn).T * norms).split([A.shape[0] for _, A in pairs], 1))


def merged_inside(stack: Stack, ask: Ask, coordinates: Sequence[Held] | Sequence[Thin], inner: Inner) -> Tensor:
    """The inner rule on each parent's coordinates, float64."""
    inside = replace(stack, shape=coordinates[0].shape, updates=tuple(coordinates))  # type: ignore[arg-type]
    return inner(inside, ask).double()


def _dense_basis(deltas: Sequence[Tensor]) -> Tensor:
    """The left singular vectors of [dW_1 ... dW_N]: eigenvectors of the sum of dW_i dW_i^T, the largest first."""
    import torch

    values, vectors = torch.linalg.eigh(torch.stack([delta @ delta.T for delta in deltas]).sum(0))
    kept = values > NUMERICAL_RANK_OF_FLOAT32**2 * values[-1]  # eigenvalues are squared singular values
    return vectors[:, kept].flip(1)
