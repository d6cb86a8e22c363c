"""Where an adapter's update lies: its norm by layer and by kind of module, as a heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.figures.style import GREY, Kind, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def place_of(module: str) -> tuple[int, str]:
    """(layer, kind) of a module; what lies in no layer has layer -1.

    >>> place_of("model.layers.3.self_attn.q_proj"), place_of("pooler.dense")
    ((3, 'self_attn.q_proj'), (-1, 'pooler.dense'))
    """
    parts = module.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return (-1, module) if place is None else (int(parts[place]), ".".join(parts[place + 1 :]))


def norms(by_module: Mapping[str, float], *, title: str = "", subtitle: str = "", kind: Kind = "svg") -> bytes:
    """Layers down, kinds of modules across; a cell without an adapter is empty. Norms are written into the cells."""
    places = {place_of(name): norm for name, norm in by_module.items()}
    layers = sorted({layer for layer, _ in places})
    kinds = list(dict.fromkeys(name for _, name in sorted(places)))
    table = [[places.get((layer, name), math.nan) for name in kinds] for layer in layers]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
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

    return drawn(
        draw,
        inches=(2.0 + 0.75 * len(kinds), 1.2 + 0.3 * max(2, len(layers))),
        title=title,
        subtitle=subtitle,
        kind=kind,
    )
