"""What a merge kept of each expert, and how much the experts' updates stand in one another's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tasks.figures.style import BLUE, GREY, INK, PALE, VERMILLION, Kind, column_inches, drawn, heat_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def retention(
    candidates: Mapping[str, Mapping[str, float]],
    *,
    base: Mapping[str, float],
    expert: Mapping[str, float],
    chosen: str = "",
    gate: float | None = None,
    metric: str = "score",
    title: str = "",
    subtitle: str = "",
    kind: Kind = "svg",
) -> bytes:
    """A panel per task, a row per candidate: its score between that of the base (0 %) and that of the expert (100 %),
    with the kept share of the gain beside it. `gate` is the least share that a merge must keep; `chosen` is set off."""
    tasks, names = list(expert), list(candidates)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axes, task in zip(panels, tasks, strict=True):
            floor, top = base[task], expert[task]
            everything = [floor, top, *(candidates[name][task] for name in names)]
            low, high = min(everything), max(everything)
            room = (high - low) or 0.1
            axes.axvline(floor, color=GREY, linewidth=1.2)
            axes.axvline(top, color=INK, linewidth=1.2)
            if gate is not None:
                axes.axvline(floor + gate * (top - floor), color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            for height, name in enumerate(names):
                score, mine = candidates[name][task], name == chosen
                colour = VERMILLION if mine else BLUE
                axes.plot([floor, score], [height, height], color=PALE, linewidth=1.4, zorder=1)
                axes.plot(
                    [score], [height], "D" if mine else "o", color=colour, markersize=6.5 if mine else 5.5, zorder=3
                )
                share = f"{(score - floor) / (top - floor):.0%}" if top != floor else "-"
                axes.annotate(
                    share, (1.03, height), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=colour
                )
            axes.set_xlim(low - 0.06 * room, high + 0.06 * room)
            axes.set_ylim(len(names) - 0.4, -1.25)
            for name, place, colour, aside in (("base", floor, GREY, 3), ("expert", top, INK, -3)):
                aside = aside if floor <= top else -aside
                axes.annotate(
                    name,
                    (place, -1.15),
                    xytext=(aside, 0),
                    textcoords="offset points",
                    ha="left" if aside > 0 else "right",
                    va="center",
                    fontsize=8,
                    color=colour,
                )
            axes.set_title(task, fontsize=9.5, color=INK)
            axes.set_xlabel(metric)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=4)
        panels[0].set_yticks(range(len(names)), names)
        for label, name in zip(panels[0].get_yticklabels(), names, strict=True):
            label.set(color=VERMILLION if name == chosen else INK, fontweight="bold" if name == chosen else "normal")

    inches = (2.2 + 2.0 * len(tasks), 1.1 + 0.27 * len(names))
    return drawn(draw, inches=inches, title=title, subtitle=subtitle, kind=kind)


def front(
    settings: Mapping[str, Mapping[str, float]], *, chosen: str = "", title: str = "", kind: Kind = "svg"
) -> bytes:
    """Mean retention against that of the worst task, a point per setting; those that none beats in both are joined."""
    points = {name: (sum(kept.values()) / len(kept), min(kept.values())) for name, kept in settings.items()}
    best = sorted(
        point
        for point in points.values()
        if not any(other[0] >= point[0] and other[1] >= point[1] and other != point for other in points.values())
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([mean for mean, _ in best], [worst for _, worst in best], color=GREY, linewidth=1.2, zorder=1)
        for name, (mean, worst) in points.items():
            mine = name == chosen
            axes.plot([mean], [worst], "D" if mine else "o", color=VERMILLION if mine else BLUE, markersize=5, zorder=2)
        if chosen in points:
            axes.annotate(
                chosen, points[chosen], xytext=(6, -10), textcoords="offset points", fontsize=8, color=VERMILLION
            )
        axes.set_xlabel("kept of the experts' gain, mean over tasks")
        axes.set_ylabel("kept on the worst task")

    return drawn(draw, inches=(5.2, 3.6), title=title, kind=kind)


def parent_overlap(
    names: Sequence[str],
    sign_conflict: Sequence[Sequence[float]],
    cosine: Sequence[Sequence[float]],
    *,
    title: str = "",
    subtitle: str = "",
    kind: Kind = "svg",
) -> bytes:
    """Two tables of parents against parents: the share of entries whose signs differ (half of them for unrelated
    updates), and the cosine of the updates. The diagonals, which say nothing, stay empty."""
    off = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(sign_conflict)]
    angles = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(cosine)]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        shares = [["" if value is None else f"{value:.0%}" for value in row] for row in off]
        heat_cells(
            left, off, shares, rows=names, columns=names, colours=("white", "#F6C9A8", VERMILLION), limits=(0, 1)
        )
        left.set_title("entries of unlike sign", pad=10)
        cosines = [["" if value is None else f"{value:.2f}".replace("-", "−") for value in row] for row in angles]
        heat_cells(
            right, angles, cosines, rows=names, columns=names, colours=(VERMILLION, "white", BLUE), limits=(-1, 1)
        )
        right.set_title("cosine of the updates", pad=10)

    side = max(1.6, column_inches(names, 0.62) * len(names))
    return drawn(draw, inches=(2 * side + 2.6, 0.8 + 0.5 * len(names)), title=title, subtitle=subtitle, kind=kind)
