"""What an update looks like inside: its norm by layer and kind of module, its spectrum, the share of its energy that
the first directions hold, and how much of it lies in another update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from tasks.figures.style import GREY, MARKERS, PALETTE, Kind, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spectra = Mapping[str, Sequence[float]]  # module name to singular values, the largest first


def place_of(module: str) -> tuple[int, str]:
    """(layer, kind) of a module; what lies in no layer has layer -1.

    >>> place_of("model.layers.3.self_attn.q_proj"), place_of("pooler.dense")
    ((3, 'self_attn.q_proj'), (-1, 'pooler.dense'))
    """
    parts = module.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return (-1, module) if place is None else (int(parts[place]), ".".join(parts[place + 1 :]))


def inside(
    spectra: Spectra,
    *,
    phi: Sequence[Sequence[float]] = (),
    other: str = "",
    title: str = "",
    subtitle: str = "",
    kind: Kind = "svg",
) -> bytes:
    """Norms as a heat map; singular values over the largest and the share of energy by rank, a line per kind of module
    (its layer that is hardest to cut); phi(i, j), if there is one, beside `other`."""
    norms = {name: math.hypot(*values) for name, values in spectra.items()}
    places = {place_of(name): norm for name, norm in norms.items()}
    layers, kinds = sorted({layer for layer, _ in places}), list(dict.fromkeys(name for _, name in sorted(places)))
    worst = hardest(spectra)

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        wide = 0.9 + 0.5 * len(kinds)
        panels = figure.subplots(1, 4 if phi else 3, width_ratios=[wide, 3, 3, *([3] if phi else [])])
        _heat(panels[0], places, layers, kinds)
        for number, (name, values) in enumerate(worst.items()):
            look: dict[str, Any] = {
                "color": PALETTE[number % len(PALETTE)],
                "marker": MARKERS[(number + number // len(PALETTE)) % len(MARKERS)],  # no second pair of a kind
                "markersize": 3 if len(values) <= 32 else 0,
                "label": name.split(".")[-1],
            }
            ranks = range(1, len(values) + 1)
            panels[1].plot(ranks, [value / (values[0] or 1) or math.nan for value in values], **look)
            panels[2].plot(ranks, energy_kept(values), **look)
        panels[0].set(title="norm")
        panels[1].set(yscale="log", xlabel="rank", ylabel="singular value over the largest")
        panels[1].set(title="of each kind the layer that is hardest to cut")
        panels[2].set(ylim=(0, 1.02), xlabel="rank", ylabel="share of energy kept")
        panels[2].legend(frameon=False, fontsize=7, loc="lower right")
        if phi:
            extent = (0.5, len(phi[0]) + 0.5, len(phi) + 0.5, 0.5)
            shown = panels[3].imshow(phi, cmap="Blues", vmin=0, vmax=1, aspect="auto", extent=extent)
            panels[3].set(xlabel=f"j, directions of {other}", ylabel="i", title="phi(i, j), mean of modules")
            figure.colorbar(shown, ax=panels[3])
        for panel in panels[1:]:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))

    inches = (7.5 + 0.5 * len(kinds) + (3.2 if phi else 0), max(2.8, 1.0 + 0.3 * len(layers)))
    return drawn(draw, inches=inches, title=title, subtitle=subtitle, kind=kind)


def hardest(spectra: Spectra) -> dict[str, list[float]]:
    """Of each kind of module the spectrum that keeps least: of all its layers the one whose energy is most spread.

    >>> hardest({"layers.0.q": [2.0, 1.0], "layers.1.q": [2.0, 0.1], "layers.0.v": [1.0]})
    {'q': [2.0, 1.0], 'v': [1.0]}
    """
    found: dict[str, list[float]] = {}
    for name, values in spectra.items():
        kind = place_of(name)[1]
        if kind not in found or sum(energy_kept(values)) / len(values) < sum(energy_kept(found[kind])) / len(
            found[kind]
        ):
            found[kind] = list(values)
    return found


def energy_kept(values: Sequence[float]) -> list[float]:
    """The share of the squared norm that the first 1, 2, ... singular values hold.

    >>> energy_kept([2.0, 1.0, 0.0])
    [0.8, 1.0, 1.0]
    """
    squares = list(accumulate(value**2 for value in values))
    return [part / squares[-1] if squares[-1] else 1.0 for part in squares]


def _heat(axes: Axes, places: Mapping[tuple[int, str], float], layers: Sequence[int], kinds: Sequence[str]) -> None:
    """Layers down, kinds of modules across; a cell without an adapter is empty. Norms are written into the cells."""
    table = [[places.get((layer, name), math.nan) for name in kinds] for layer in layers]
    axes.imshow(table, cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(len(kinds)), [name.split(".")[-1] for name in kinds], rotation=30, ha="right")
    axes.set_yticks(range(len(layers)), ["elsewhere" if layer < 0 else f"layer {layer}" for layer in layers])
    axes.tick_params(length=0)
    highest = max(places.values(), default=1.0)
    for y, row in enumerate(table if len(layers) <= 40 else ()):
        for x, norm in enumerate(row):
            dark = not math.isnan(norm) and norm > 0.6 * highest
            text = "" if math.isnan(norm) else f"{norm:.2g}"
            axes.annotate(text, (x, y), ha="center", va="center", fontsize=8, color="white" if dark else GREY)
    for spine in axes.spines.values():
        spine.set_visible(False)
