"""The one look of all figures: values in, bytes out, the same bytes each time.

Colours are those of Okabe & Ito (2008), which colour-blind readers tell apart; a line or dot also carries its name. The
background is white in light and dark pages alike. Nothing here touches pyplot: a figure lives inside one call.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["svg", "png"]

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
INK, GREY, PALE = "#222222", "#6B6B6B", "#D9D9D9"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "D", "^", "v", "P")

LOOK: Any = {  # matplotlib's names
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "adapter-factory",
    "svg.fonttype": "path",
    "path.simplify": True,
}
LONGEST_LEVEL_NAME = 17  # letters; longer names of columns stand aslant
_DRAWING = threading.Lock()  # the look is set for the whole process while one figure is drawn


def drawn(
    draw: Callable[[Figure], None],
    *,
    inches: tuple[float, float],
    title: str = "",
    subtitle: str = "",
    kind: Kind = "svg",
) -> bytes:
    """The figure that `draw` fills, as SVG or PNG (160 dots an inch), with the title above it at the left."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _DRAWING, mpl.rc_context(LOOK):
        heading = [part for part in (title, subtitle) if part]
        figure = Figure(figsize=(inches[0], inches[1] + 0.24 * len(heading)))
        FigureCanvasAgg(figure)
        height = figure.get_figheight()
        top = 1 - (0.08 + 0.24 * len(heading)) / height if heading else 1.0
        figure.set_layout_engine("constrained", rect=(0, 0, 1, top))
        draw(figure)
        for line, text in enumerate(heading):
            points, weight, colour = (11, "bold", INK) if line == 0 and title else (9, "normal", GREY)
            figure.text(
                0.1 / inches[0],
                1 - (0.08 + 0.24 * line) / height,
                fitted(text, inches[0], points),
                va="top",
                fontsize=points,
                fontweight=weight,
                color=colour,
            )
        target = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(target, format=kind, dpi=160, metadata=metadata)
        return target.getvalue()


def fitted(text: str, inches: float, points: float) -> str:
    """One line that fits a width, cut with an ellipsis; letters are taken to be 0.58 of their height wide.

    >>> fitted("a plain title", 6, 11), fitted("a plain title", 0.8, 11)
    ('a plain title', 'a plain…')
    """
    most = int(inches * 72 / (0.58 * points))
    line = " ".join(text.split())
    return line if len(line) <= most else line[: max(most - 1, 1)].rstrip() + "…"


def finite_points(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The points whose value is a number.

    >>> finite_points([1, 2, 3], [0.5, float("nan"), None])
    ([1], [0.5])
    """
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b is not None and math.isfinite(b)]
    return [a for a, _ in kept], [b for _, b in kept]


def spread_labels(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved apart until neighbours are `gap` from one another; crowded ones keep their order and their middle.

    >>> [round(height, 2) for height in spread_labels([0.5, 0.52, 0.9], 0.1)]
    [0.46, 0.56, 0.9]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[tuple[list[int], float]] = []  # (members from low to high, middle)
    for i in order:
        members, middle = [i], heights[i]
        while groups and middle - groups[-1][1] < gap * (len(members) + len(groups[-1][0])) / 2:
            earlier, centre = groups.pop()
            middle = (middle * len(members) + centre * len(earlier)) / (len(members) + len(earlier))
            members = earlier + members
        groups.append((members, middle))
    placed = [0.0] * len(heights)
    for members, middle in groups:
        for place, i in enumerate(members):
            placed[i] = middle + gap * (place - (len(members) - 1) / 2)
    return placed


def column_inches(names: Sequence[str], least: float) -> float:
    """Width of a heat map's column in which every level name fits."""
    return max(least, 0.08 * min(max(map(len, names), default=0), LONGEST_LEVEL_NAME) + 0.1)


def signed(change: float) -> str:
    """A change of a score with its sign.

    >>> signed(-0.13), signed(0.0001), signed(0.02)
    ('−0.130', '±0.000', '+0.020')
    """
    return "±0.000" if abs(change) < 0.0005 else f"{change:+.3f}".replace("-", "−")


def name_at_end(axes: Axes, ends: Sequence[tuple[str, float, float, str]], *, gap_points: float = 11) -> None:
    """Names of lines beside their last points: (name, x, y, colour). Limits of the axes must be set already."""
    axes.figure.canvas.draw()  # places are asked of the finished layout
    pixels = [float(axes.transData.transform((x, y))[1]) for _, x, y, _ in ends]
    scale = axes.figure.dpi / 72
    for (name, x, _, colour), pixel in zip(ends, spread_labels(pixels, gap_points * scale), strict=True):
        height = float(axes.transData.inverted().transform((0, pixel))[1])
        axes.annotate(
            name,
            (x, height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8.5,
            annotation_clip=False,
        )


def heat_cells(
    axes: Axes,
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    colours: tuple[str, str, str],
    limits: tuple[float, float],
) -> None:
    """A heat map with its figures in the cells; what is None stays white. `colours`: those of low, middle and high."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    table = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=float)
    scale, norm = LinearSegmentedColormap.from_list("heat", colours), Normalize(*limits, clip=True)
    axes.imshow(np.ma.masked_invalid(table), cmap=scale, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    if max((len(name) for name in columns), default=0) > LONGEST_LEVEL_NAME:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="left", rotation_mode="anchor")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([place - 0.5 for place in range(1, len(columns))], minor=True)
    axes.set_yticks([place - 0.5 for place in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0, top=False)
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            red, green, blue, _ = scale(norm(table[i, j])) if math.isfinite(table[i, j]) else (1, 1, 1, 1)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            axes.text(
                j, i, text, ha="center", va="center", fontsize=8.5, color="white" if dark else INK, linespacing=1.3
            )
