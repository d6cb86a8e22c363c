"""A curve in a terminal: characters on a grid, for whoever has no window."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCK, MARK = "·", "o"


def plotted(
    training: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]] = (),
    *,
    width: int = 72,
    height: int = 14,
) -> list[str]:
    """Lines of text: training loss as dots (the mean of the steps that share a column), validation loss as o.

    >>> print("\\n".join(plotted([(1, 4.0), (2, 2.0), (3, 1.0)], width=12, height=3)))
      4.00 |·
           |      ·
      1.00 |           ·
           +------------
            1          3
    """
    points = [(x, y) for x, y in [*training, *validation] if math.isfinite(y)]
    if not points:
        return ["no finite loss"]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    columns: dict[int, list[float]] = {}
    for x, y in training:
        if math.isfinite(y):
            columns.setdefault(_place(x, left, right, width - 1), []).append(y)
    dots = [(column, math.fsum(values) / len(values)) for column, values in columns.items()]
    marks = [(_place(x, left, right, width - 1), y) for x, y in validation if math.isfinite(y)]
    low, high = min(y for _, y in dots + marks), max(y for _, y in dots + marks)
    grid = [[" "] * width for _ in range(height)]
    for symbol, drawn in ((BLOCK, dots), (MARK, marks)):
        for column, y in drawn:
            grid[height - 1 - _place(y, low, high, height - 1)][column] = symbol
    labels = {0: f"{high:.2f}", height - 1: f"{low:.2f}"}
    lines = [f"{labels.get(row, ''):>6} |{''.join(cells)}".rstrip() for row, cells in enumerate(grid)]
    scale = f"{left}{str(right).rjust(width - len(str(left)))}"
    return [*lines, " " * 7 + "+" + "-" * width, " " * 8 + scale]


def _place(value: float, low: float, high: float, cells: int) -> int:
    return round((value - low) / (high - low) * cells) if high > low else 0
