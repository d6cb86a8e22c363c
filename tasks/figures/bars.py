"""Counts as horizontal bars: lengths of rows, classes, scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.figures.style import BLUE, Kind, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BARS = 30


def bars(counts: Mapping[str, int], *, label: str = "rows", title: str = "", kind: Kind = "svg") -> bytes:
    """One bar a name in the order given, its count beside it; what comes after 30 bars is told below in words."""
    names, values = list(counts)[:MOST_BARS], list(counts.values())
    shown, rest = values[:MOST_BARS], values[MOST_BARS:]
    label += f"; {len(rest):,} others have {sum(rest):,} in all" if rest else ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(shown))
        axes.barh(places, shown, color=BLUE, height=0.72)
        axes.set_yticks(places, [name if len(name) <= 32 else name[:31] + "…" for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, max(shown, default=1) * 1.12 or 1)
        for place, value in enumerate(shown):
            axes.annotate(
                f"{value:,}", (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_xlabel(label)
        axes.spines["left"].set_visible(False)

    return drawn(draw, inches=(7.2, 0.6 + 0.21 * max(1, len(shown))), title=title, kind=kind)
