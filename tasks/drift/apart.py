"""Rows that nearly are rows which judge: found exactly, for what is learned from traffic must not lean on the test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.data.near import shingles

BLOCK = 512


def near_rows(texts: Sequence[str], frozen: Sequence[str], similarity: float) -> frozenset[int]:
    """Positions of texts whose Jaccard index of 5-character shingles with any frozen text reaches `similarity`.

    Every pair is compared: shared shingles are a product of sparse matrices, (texts, shingles) by (shingles, frozen).

    >>> sorted(near_rows(["where is my card", "Where is my  card?", "cash"], ["where is my card?"], 0.5))
    [0, 1]
    """
    from scipy.sparse import csr_matrix

    if not texts or not frozen:
        return frozenset()
    column: dict[str, int] = {}

    def held(rows: Sequence[str]) -> tuple[list[list[int]], np.ndarray]:
        known = [[column.setdefault(piece, len(column)) for piece in shingles(text)] for text in rows]
        return known, np.array([len(row) for row in known])

    (asked, sizes), (judged, judged_sizes) = held(texts), held(frozen)

    def matrix(rows: list[list[int]]) -> csr_matrix:
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        ones = np.ones(int(starts[-1]), np.float32)
        return csr_matrix(
            (ones, np.concatenate([np.array(row) for row in rows]), starts), shape=(len(rows), len(column))
        )

    left, right = matrix(asked), matrix(judged).T.tocsc()
    found: set[int] = set()
    for start in range(0, len(texts), BLOCK):
        shared = (left[start : start + BLOCK] @ right).tocoo()
        union = sizes[start + shared.row] + judged_sizes[shared.col] - shared.data
        found |= set((start + shared.row[shared.data >= similarity * union - 1e-6]).tolist())
    return frozenset(found)
