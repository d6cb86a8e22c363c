"""How a training went: loss, validation loss, rate and gradient norm over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.figures.style import BLUE, GREY, INK, PALE, VERMILLION, Kind, drawn, finite_points, name_at_end

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def smoothed(values: Sequence[float], *, share: float = 0.05) -> list[float]:
    """Mean over the neighbours on both sides, `share` of the curve wide; fewer than 40 points stay as they are.

    >>> smoothed([1.0, 5.0, 3.0]), smoothed([1.0] * 50) == [1.0] * 50
    ([1.0, 5.0, 3.0], True)
    """
    half = int(len(values) * share / 2)
    return [
        math.fsum(near) / len(near) for i in range(len(values)) if (near := values[max(0, i - half) : i + half + 1])
    ]


def training_curve(
    steps: Sequence[int],
    loss: Sequence[float],
    *,
    validation: Sequence[tuple[int, float]] = (),
    rates: Sequence[float] = (),
    grad_norms: Sequence[float] = (),
    verdict: str = "",
    name: str = "",
    kind: Kind = "svg",
) -> bytes:
    """`verdict` (the diagnosis in one line) is the title, `name` the line under it. `rates` and `grad_norms` run along
    `steps`; `validation` are (step, loss). What is no number is left out of the lines and marked."""
    lower = [(label, values) for label, values in (("rate", rates), ("gradient norm", grad_norms)) if len(values)]

    def draw(figure: Figure) -> None:
        ratios = [3.2] + [1.0] * len(lower)
        panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        _loss_panel(panels[0], steps, loss, validation)
        for axes, (label, values) in zip(panels[1:], lower, strict=True):
            axes.plot(*finite_points(steps, values), color=GREY, linewidth=1.2)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            if label == "rate":
                axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        panels[-1].set_xlabel("step")
        figure.align_ylabels(panels)

    return drawn(draw, inches=(7.2, 3.0 + 0.9 * len(lower)), title=verdict, subtitle=name, kind=kind)


def _loss_panel(
    axes: Axes, steps: Sequence[int], loss: Sequence[float], validation: Sequence[tuple[int, float]]
) -> None:
    x, y = finite_points(steps, loss)
    axes.set_ylabel("loss")
    broken = [step for step, value in zip(steps, loss, strict=True) if not math.isfinite(value)]
    if not x:
        axes.text(0.5, 0.5, "no finite loss", transform=axes.transAxes, ha="center", color=VERMILLION)
        return
    axes.plot(x, y, color=PALE, linewidth=1.0)
    trend = smoothed(y)
    axes.plot(x, trend, color=BLUE)
    ends = [("training", x[-1], trend[-1], BLUE)]
    seen_x, seen_y = finite_points([step for step, _ in validation], [value for _, value in validation])
    if seen_x:
        axes.plot(seen_x, seen_y, color=VERMILLION, marker="o", markersize=3.5, clip_on=False)
        best = min(range(len(seen_y)), key=lambda i: seen_y[i])
        axes.annotate(
            f"best {seen_y[best]:.3f}",
            (seen_x[best], seen_y[best]),
            xytext=(0, 9),
            textcoords="offset points",
            ha="right" if best == len(seen_x) - 1 and best else "center",
            fontsize=8,
            color=INK,
        )
        ends.append(("validation", seen_x[-1], seen_y[-1], VERMILLION))
    settled = sorted(y)[max(0, int(0.995 * len(y)) - 1)]
    top = max([settled, trend[0], *seen_y]) if len(y) > 20 else max([*y, *seen_y])
    floor = min([*y, *seen_y])
    axes.set_ylim(floor - 0.06 * (top - floor or 1), top + 0.08 * (top - floor or 1))
    first, last = min([steps[0], *seen_x]), max([steps[-1], *seen_x])
    axes.set_xlim(first, last if last > first else first + 1)
    axes.locator_params(axis="x", integer=True)
    if broken:
        axes.axvspan(
            broken[0], max(broken[-1], broken[0] + 0.005 * (last - first)), color=VERMILLION, alpha=0.12, linewidth=0
        )
        on_left = broken[0] > (first + last) / 2
        axes.annotate(
            "not a number" + (f" from step {broken[0]}" if len(broken) > 1 else f" at step {broken[0]}"),
            (broken[0], 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if on_left else 4, 0),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="top",
            color=VERMILLION,
        )
    name_at_end(axes, ends)
