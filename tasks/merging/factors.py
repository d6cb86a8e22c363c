"""Products of thin matrices, without ever forming what they multiply to, and reductions to a low rank.

The small problems run in float64: for A minus nearly-A, float32 loses four digits of what is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.errors import SpecRefused

if TYPE_CHECKING:
    from torch import Tensor

NUMERICAL_RANK = 1e-10  # singular values below this share of the largest are rounding
SAFE_PIVOT = 1e-4  # of a Cholesky factor: its square costs half of float64's digits
SAFE_EIGENVALUE = 1e-10  # of a Gram matrix, over the largest: singular values down to 1e-5 of the first
NUMERICAL_RANK_OF_FLOAT32 = 1e-6  # the same for matrices whose entries were rounded to float32


@dataclass(frozen=True)
class Reduced:
    """A low-rank change B A, float32, and the share of the squared norm that was cut off."""

    B: Tensor  # (out, rank)
    A: Tensor  # (rank, in)
    lost: float

    @property
    def rank(self) -> int:
        return int(self.A.shape[0])


def product(B: Tensor, A: Tensor) -> Tensor:
    """B A, multiplied in float64 by row blocks and rounded once to float32 (out, in)."""
    import torch

    from tasks.merging.vectors import row_blocks

    shape = B.shape[0], A.shape[1]
    dense = torch.empty(shape)
    for block in row_blocks(*shape):
        dense[block] = (B[block] @ A).float()
    return dense


def thin_svd(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), singular values (k,), V^T (k, in) of B A in float64, up to the numerical rank k; exact, O((out +
    in) R^2).

    QR of both factors leaves an R x R problem: B A = Q_B (R_B R_A^T) Q_A^T.
    """
    import torch

    left, upper = torch.linalg.qr(B.double())
    right, lower = torch.linalg.qr(A.double().T)
    U, values, Vt = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    rank = numerical_rank(values)
    return left @ U[:, :rank], values[:rank], Vt[:rank] @ right.T


def numerical_rank(values: Tensor, share: float = NUMERICAL_RANK) -> int:
    """How many of the descending singular values are more than rounding; at least 1."""
    return max(1, int((values > share * values[0]).sum()))


def reduce_factors(B: Tensor, A: Tensor, *, rank: int | None = None, energy: float | None = None) -> Reduced:
    """The best approximation of B A of a fixed rank, or of the smallest rank that keeps the share `energy` of ||B
    A||^2.

    Eckart-Young: nothing of that rank is nearer.
    """
    if rank is not None and energy is None and rank < A.shape[0]:
        found = _through_grams(B.double(), A.double(), rank)
        if found is not None:
            return found
    U, values, Vt = thin_svd(B, A)
    return _cut(U, values, Vt, float((values**2).sum()), rank, energy)


def _through_grams(B: Tensor, A: Tensor, rank: int) -> Reduced | None:
    """The same from the Gram matrices of the factors alone, a few times faster, or None where squaring them would cost
    digits: rows of A that nearly depend on each other, or a rank beyond the numerical one.

    With A A^T = L L^T the right singular vectors of B A are A^T L^-T W, W the eigenvectors of L^T B^T B L.
    """
    import torch

    found = cholesky_of_rows(A)
    if found is None:
        return None
    lower, norms = found
    B, A = B * norms, A / norms[:, None]
    inner = B @ lower
    squares, vectors = torch.linalg.eigh(inner.T @ inner)
    squares, vectors = squares.flip(0), vectors.flip(1)[:, :rank]
    if not squares[rank - 1] > SAFE_EIGENVALUE * squares[0]:
        return None
    root = squares[:rank] ** 0.25
    right = torch.linalg.solve_triangular(lower.T, vectors, upper=True)
    lost = 1 - float(squares[:rank].sum() / squares.sum())
    return Reduced((inner @ vectors / root).float(), (root[:, None] * (right.T @ A)).float(), max(0.0, lost))


def cholesky_of_rows(A: Tensor) -> tuple[Tensor, Tensor] | None:
    """L (R, R) with L L^T = A' A'^T for the rows A' of A (R, in) scaled to norm 1, and their norms; float64. None where
    the rows are so near to dependence that L would have fewer than eight digits."""
    import torch

    gram = A @ A.T
    norms = gram.diagonal().sqrt()
    lower, failed = torch.linalg.cholesky_ex(gram / norms / norms[:, None])
    diagonal = lower.diagonal()
    if int(failed) or not float(diagonal.min()) > SAFE_PIVOT * float(diagonal.max()):
        return None
    return lower, norms


def reduce_dense(
    dense: Tensor,
    rank: int,
    *,
    start: Tensor | None = None,
    energy: float | None = None,
    iterations: int | None = None,
    oversample: int = 8,
    seed: int = 0,
) -> Reduced:
    """Nearly the best approximation of rank `rank` (at most, if `energy` is given), by a randomised range finder with
    power iterations (Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.4).

    Args:
        dense: (out, in) float32.
        start: (k, in) rows that are thought to span most of the row space, such as the parents' A.
        iterations: power iterations; by default one with a start and two without.

    Returns:
        The factors; `lost` is measured against `dense` itself, so it counts the sketch's excess too.
    """
    import torch

    from tasks.merging.vectors import row_blocks

    columns = min(rank + oversample, *dense.shape)
    total = sum(float(torch.linalg.vector_norm(dense[block])) ** 2 for block in row_blocks(*dense.shape))
    if 2 * columns >= min(dense.shape):  # a sketch would save nothing
        U, values, Vt = torch.linalg.svd(dense.double(), full_matrices=False)
        return _cut(U, values, Vt, total, rank, energy)
    generator = torch.Generator().manual_seed(seed % 2**63)
    guess = torch.randn(columns, dense.shape[1], generator=generator)
    if start is not None:
        fill = max(0, columns - start.shape[0])
        guess = torch.cat([start.float(), guess[:fill] * start.float().abs().mean()])[: min(dense.shape)]
    basis = _orthonormal(dense @ _orthonormal(guess.T))
    for _ in range(iterations if iterations is not None else 2 if start is None else 1):
        basis = _orthonormal(dense @ _orthonormal(dense.T @ basis))
    inside = (basis.T @ dense).double()
    squares, vectors = torch.linalg.eigh(inside @ inside.T)
    kept = squares >= NUMERICAL_RANK_OF_FLOAT32**2 * squares[-1]
    kept[-1] = True
    values, inner = squares[kept].flip(0).clamp_min(1e-300).sqrt(), vectors[:, kept].flip(1)  # a zero matrix stays 0
    return _cut(basis.double() @ inner, values, (inner.T @ inside) / values[:, None], total, rank, energy)


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns, float32."""
    import torch

    exact = columns.double()
    found = cholesky_of_rows(exact.T)
    if found is None:
        return torch.linalg.qr(exact)[0].float()
    lower, norms = found
    return torch.linalg.solve_triangular(lower, (exact / norms).T, upper=False).T.float()


def _cut(U: Tensor, values: Tensor, Vt: Tensor, total: float, rank: int | None, energy: float | None) -> Reduced:
    if rank is None and energy is None:
        raise SpecRefused.one("E-MERGE-010", "rank", "neither rank nor energy is given", "give one of them")
    kept = len(values)
    if energy is not None and total > 0:
        shares = (values**2).cumsum(0) / total
        kept = min(kept, int((shares < energy - 1e-12).sum()) + 1)
    if rank is not None:
        kept = min(kept, rank)
    root = values[:kept].sqrt()
    lost = 1 - float((values[:kept] ** 2).sum()) / total if total > 0 else 0.0
    return Reduced((U[:, :kept] * root).float(), (root[:, None] * Vt[:kept]).float(), max(0.0, lost))


def relative_error(lost: float) -> float:
    """||D - B A|| / ||D|| from the share of the squared norm that was lost.

    >>> relative_error(0.25)
    0.5
    """
    return math.sqrt(lost)
