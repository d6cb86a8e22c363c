"""Which modules of a base a method adapts; decided from names and shapes alone, so before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.errors import Problem, SpecRefused, raise_if_any
from tasks.methods.catalogue import METHODS

if TYPE_CHECKING:
    from tasks.specs import MethodSpec

BLOCK_ENDS = ("o_proj", "down_proj", "out_proj", "fc2", "c_proj", "output.dense")
HEAD_NAMES = ("lm_head", "score", "classifier", "embed_out")


def chosen_targets(linear: Mapping[str, tuple[int, int]], method: MethodSpec) -> dict[str, tuple[int, int]]:
    """Among linear modules and their (out, in) shapes, those that a method adapts.

    Raises:
        SpecRefused: for a target that names nothing, layers out of range, a rank above a module's dimension, or if
            nothing is left to adapt.
    """
    problems = []
    names = set(linear)
    row = METHODS[method.name]
    if method.targets == "all-linear" and row.name == "bottleneck":  # behind attention and behind the feed-forward part
        names = {name for name in linear if any(_is_named(name, target) for target in BLOCK_ENDS)} or names
    if method.targets != "all-linear":
        for target in method.targets:
            if not any(_is_named(name, target) for name in linear):
                kinds = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
                problems.append(
                    Problem("E-SPEC-010", "method.targets", f"no module is called '{target}'", f"choose of: {kinds}")
                )
        names = {name for name in linear if any(_is_named(name, target) for target in method.targets)}
    if method.layers is not None:
        depth = {layer for name in linear if (layer := _layer_of(name)) is not None}
        for layer in method.layers:
            if layer not in depth:
                wrong = f"there is no layer {layer}"
                problems.append(
                    Problem("E-SPEC-011", "method.layers", wrong, f"layers are 0 to {max(depth, default=0)}")
                )
        names = {name for name in names if _layer_of(name) in method.layers}
    if not names and not problems:
        wrong = "no linear layer of the base is left to adapt"
        problems.append(Problem("E-SPEC-010", "method.targets", wrong, "name other targets or layers, or another base"))
    chosen = {name: linear[name] for name in sorted(names)}
    for name, (rows, columns) in chosen.items():
        if row.is_low_rank and method.rank > min(rows, columns):
            wrong = f"rank {method.rank} is above the dimension of {name} ({rows} x {columns})"
            problems.append(Problem("E-SPEC-012", "method.rank", wrong, f"use a rank of at most {min(rows, columns)}"))
    raise_if_any(SpecRefused, problems)
    return chosen


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _layer_of(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
