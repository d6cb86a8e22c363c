"""The PEFT methods that the factory trains, one row each; torch-free, so that a spec is refused before anything loads.

Adding a method is adding a row. `update` says how its exact weight update is written, which is what merging needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Method:
    """A row: how PEFT is asked for it, and what it can do.

    `config` are arguments of `peft.LoraConfig`; `scale` is the exponent p of r in s = alpha / r**p.
    """

    name: str
    title: str
    paper: str
    update: str
    scale_exponent: float = 1.0
    works_on_nf4: bool = True
    mergeable: bool = True
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        row.name: row
        for row in (
            Method(
                name="lora",
                title="low-rank adaptation (QLoRA when the base is NF4)",
                paper="Hu et al. 2021, arXiv:2106.09685; Dettmers et al. 2023, arXiv:2305.14314",
                update="dW = (alpha / r) B A",
            ),
            Method(
                name="rslora",
                title="rank-stabilised LoRA: the scale falls with the root of r, so large ranks still learn",
                paper="Kalajdzievski 2023, arXiv:2312.03732",
                update="dW = (alpha / sqrt(r)) B A",
                scale_exponent=0.5,
                config=MappingProxyType({"use_rslora": True}),
            ),
            Method(
                name="dora",
                title="weight-decomposed LoRA: direction by LoRA, magnitude per output row learned apart",
                paper="Liu et al. 2024, arXiv:2402.09353",
                update="dW = m (W + s B A) / ||W + s B A||_row - W",
                config=MappingProxyType({"use_dora": True}),
            ),
        )
    }
)


def trainable_parameters(shapes: Mapping[str, tuple[int, int]], rank: int, method: str = "lora") -> int:
    """Trainable parameters of an adapter over linear modules of the given (out, in) shapes, head excluded.

    r (d_in + d_out) per module; DoRA adds its magnitude, d_out per module.

    >>> trainable_parameters({f"{layer}.{p}": (4096, 4096) for layer in range(32) for p in "qkvo"}, rank=16)
    16777216
    """
    total = sum(rank * (rows + columns) for rows, columns in shapes.values())
    if METHODS[method].config.get("use_dora"):
        total += sum(rows for rows, _ in shapes.values())
    return total
