"""How a served task fared over its windows: the score, and the signals against the values from which they count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.figures.style import (
    BLUE,
    GREY,
    INK,
    MARKERS,
    PALE,
    PALETTE,
    VERMILLION,
    Kind,
    drawn,
    finite_points,
    name_at_end,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float, float] | None  # score, low, high; None where nothing was graded


def score_over_windows(
    windows: Sequence[str],
    lines: Mapping[str, Sequence[Point]],
    *,
    alarm_below: float | None = None,
    events: Mapping[int, str] | None = None,
    metric: str = "score",
    title: str = "",
    subtitle: str = "",
    kind: Kind = "svg",
) -> bytes:
    """One line a model, with the interval of each score. `events` are short texts over windows by position (the
    verdict, "retrained"); `alarm_below` is the score under which a fall counts."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        known = [value for points in lines.values() for point in points if point for value in point]
        low, high = min(known, default=0.0), max(known, default=1.0)
        room = max(high - low, 0.1)
        axes.set_ylim(low - 0.08 * room, high + 0.08 * room)
        axes.set_xlim(-0.2, len(windows) - 0.95)
        ends = []
        for number, (name, points) in enumerate(lines.items()):
            colour = PALETTE[number % len(PALETTE)]
            x, y = finite_points(range(len(windows)), [point and point[0] for point in points])
            axes.plot(x, y, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=5)
            for place, point in enumerate(points):
                if point:
                    axes.plot([place, place], point[1:], color=colour, linewidth=2.2, alpha=0.4, solid_capstyle="butt")
            if x:
                ends.append((name, x[-1], y[-1], colour))
        if alarm_below is not None:
            axes.axhline(alarm_below, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                "a fall counts below",
                (0.005, alarm_below),
                xycoords=("axes fraction", "data"),
                xytext=(0, -10),
                textcoords="offset points",
                fontsize=8,
                color=GREY,
            )
        for place, text in (events or {}).items():
            axes.axvline(place, color=PALE, linewidth=0.8, zorder=0)
            above = ("data", "axes fraction")
            axes.annotate(text, (place, 1.02), xycoords=above, ha="center", va="bottom", fontsize=8, color=INK)
        _name_windows(axes, windows)
        axes.set_ylabel(metric)
        name_at_end(axes, ends)

    return drawn(draw, inches=(7.2, 3.2), title=title, subtitle=subtitle, kind=kind)


def signals_over_windows(
    windows: Sequence[str],
    signals: Mapping[str, Sequence[float | None]],
    thresholds: Mapping[str, float],
    moved: Mapping[str, Sequence[bool]],
    *,
    title: str = "",
    subtitle: str = "",
    kind: Kind = "svg",
) -> bytes:
    """One strip a signal: its effect over the windows, the effect from which it counts (dashed), and a full dot where
    it moved, that is where the effect was also significant."""

    def draw(figure: Figure) -> None:
        strips = figure.subplots(len(signals), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, values) in zip(strips, signals.items(), strict=True):
            x, y = finite_points(range(len(windows)), values)
            axes.plot(x, y, color=PALE, linewidth=1.2)
            for place, value in zip(x, y, strict=True):
                full = moved[name][int(place)]
                colour, inside = (VERMILLION, VERMILLION) if full else (BLUE, "white")
                axes.plot([place], [value], "o", markersize=5.5, markeredgecolor=colour, markerfacecolor=inside)
            axes.axhline(thresholds[name], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            low, high = min([*y, 0.0]), max([*y, thresholds[name]])
            axes.set_ylim(low - 0.15 * (high - low), high + 0.2 * (high - low))
            axes.set_xlim(-0.3, len(windows) - 0.7)
            ticks = [tick for tick in (0.0, high) if abs(tick - thresholds[name]) > 0.25 * (high - low)]
            axes.set_yticks([thresholds[name], *ticks], [f"{tick:.2g}" for tick in (thresholds[name], *ticks)])
            axes.set_title(name, fontsize=8.5, color=INK, pad=2)
        _name_windows(strips[-1], windows)

    inches = (7.2, 0.45 + 0.85 * len(signals))
    return drawn(draw, inches=inches, title=title, subtitle=subtitle or "full dots: the signal moved", kind=kind)


def _name_windows(axes: Axes, windows: Sequence[str]) -> None:
    shown = range(0, len(windows), max(1, -(-len(windows) // 12)))
    axes.set_xticks(list(shown), [windows[place] for place in shown])
    if max((len(name) for name in windows), default=0) * len(shown) > 90:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")
