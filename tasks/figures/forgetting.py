"""What each version still knows: every version scored on every earlier frozen slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.figures.style import BLUE, VERMILLION, Kind, column_inches, drawn, heat_cells, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = Sequence[Sequence[float | None]]  # (versions, slices); None where a version was not scored


def changes(scores: Scores) -> list[list[float | None]]:
    """Score less the best of all earlier versions on the same slice; None for the first that was scored there.

    >>> changes([[0.9, None], [0.8, 0.5], [0.85, 0.7]])
    [[None, None], [-0.1, None], [-0.05, 0.2]]
    """
    best: dict[int, float] = {}
    table: list[list[float | None]] = []
    for row in scores:
        table.append([None if s is None or j not in best else round(s - best[j], 6) for j, s in enumerate(row)])
        best |= {j: max(s, best.get(j, s)) for j, s in enumerate(row) if s is not None}
    return table


def forgetting_matrix(
    versions: Sequence[str],
    slices: Sequence[str],
    scores: Scores,
    *,
    margin: float = 0.03,
    title: str = "",
    subtitle: str = "",
    kind: Kind = "svg",
) -> bytes:
    """A row per version, oldest first, a column per slice. A cell says the score and its change against the best
    earlier version; the colour is the change, full at three times `margin` (the fall that the gate allows)."""
    known = [[score if score is not None and math.isfinite(score) else None for score in row] for row in scores]
    moved = changes(known)
    texts = [
        ["" if s is None else f"{s:.3f}" + ("" if d is None else f"\n{signed(d)}") for s, d in zip(*pair, strict=True)]
        for pair in zip(known, moved, strict=True)
    ]
    shades = [
        [None if s is None else d or 0.0 for s, d in zip(*pair, strict=True)] for pair in zip(known, moved, strict=True)
    ]

    def draw(figure: Figure) -> None:
        limit = max(3 * margin, 0.01)
        heat_cells(figure.subplots(), shades, texts, rows=versions, columns=slices,
                   colours=(VERMILLION, "#F2F2F2", BLUE), limits=(-limit, limit))  # fmt: skip

    inches = (1.8 + column_inches(slices, 0.95) * len(slices), 0.7 + 0.5 * len(versions))
    return drawn(draw, inches=(max(inches[0], 4.5), inches[1]), title=title, subtitle=subtitle, kind=kind)
