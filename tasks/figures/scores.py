"""Scores of several models on several tasks, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, cycle
from typing import TYPE_CHECKING, NamedTuple

from tasks.figures.style import GREY, MARKERS, PALE, PALETTE, Kind, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ScoreRow(NamedTuple):
    """One dot: a model's score on a task, from 0 to 1, with the bounds of its interval."""

    task: str
    model: str
    score: float
    low: float
    high: float


def scores(
    rows: Sequence[ScoreRow], *, metric: str = "score", title: str = "", subtitle: str = "", kind: Kind = "svg"
) -> bytes:
    """One band a task, one dot with its interval a model, in the order given; the first model (the base) is grey."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    colours = dict(zip(models, cycle(PALETTE) if len(models) == 1 else chain([GREY], cycle(PALETTE)), strict=False))
    lines = [(task, row) for task in tasks for row in rows if row.task == task]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        height, previous, centres = 0.0, "", []
        for task, row in lines:
            if previous and task != previous:
                axes.axhline(height + 0.75, color=PALE, linewidth=0.8)
                height += 0.5
            height, previous = height + 1, task
            colour = colours[row.model]
            axes.plot(
                [row.low, row.high], [height, height], color=colour, linewidth=2, alpha=0.45, solid_capstyle="butt"
            )
            axes.plot(
                [row.score], [height], MARKERS[models.index(row.model) % len(MARKERS)], color=colour, markersize=6
            )
            beside = ("axes fraction", "data")
            text = f"{row.score:.3f}  {row.model}"
            axes.annotate(text, (1.02, height), xycoords=beside, va="center", color=colour, fontsize=8.5)
            centres.append((task, height))
        middles = {task: [h for name, h in centres if name == task] for task in tasks}
        axes.set_yticks([sum(heights) / len(heights) for heights in middles.values()], list(middles))
        axes.tick_params(axis="y", length=0, labelsize=9.5)
        axes.set_ylim(height + 0.75, 0.25)
        lowest, highest = min(row.low for row in rows), max(row.high for row in rows)
        axes.set_xlim(max(-0.01, lowest - 0.08), min(1.01, highest + 0.08))
        axes.grid(axis="x", color=PALE, linewidth=0.6)
        axes.set_xlabel(metric)
        axes.spines["left"].set_visible(False)

    return drawn(
        draw, inches=(7.2, 0.8 + 0.27 * (len(lines) + len(tasks) / 2)), title=title, subtitle=subtitle, kind=kind
    )
