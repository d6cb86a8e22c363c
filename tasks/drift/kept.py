"""Whether a candidate forgot: every earlier frozen slice by itself, and together those that are too small for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import pvariance
from typing import NamedTuple

from tasks.drift.power import rows_to_show
from tasks.promotion import Gate, keeps_slice
from tasks.specs import GateSpec


class Held(NamedTuple):
    """Outcomes of the candidate and of the champion on the same rows of one slice."""

    new: Sequence[float]
    old: Sequence[float]


def kept_slices(slices: Mapping[str, Held], gates: GateSpec) -> list[Gate]:
    """One gate a slice, and one for the small ones together.

    A slice is small where a candidate that is as good as the champion, and differs from it on as many rows, would not
    prove that in nine of ten cases. Of several small ones each has to be kept as it was measured, and the bound is that
    of all their rows. Every retrain leaves one slice more: were each proven by itself, a candidate that is as good as
    the champion would pass ever more rarely, and in the end never.
    """
    small = [name for name, held in slices.items() if _is_small(held, gates)]
    alone = [keeps_slice(name, held.new, held.old, gates) for name, held in slices.items()]
    if len(small) < 2:
        return alone
    measured = [
        replace(gate, bound=gate.measured, passed=gate.measured > gate.required, fewest=0) if name in small else gate
        for name, gate in zip(slices, alone, strict=True)
    ]
    new, old = ([one for name in small for one in slices[name][who]] for who in (0, 1))
    return [*measured, keeps_slice(" and ".join(small), new, old, gates)]


def _is_small(held: Held, gates: GateSpec) -> bool:
    """By the variance that was seen; by one row that differs where none does, for n rows do not prove that none is."""
    rows = len(held.new)
    differences = [now - before for now, before in zip(held.new, held.old, strict=True)]
    variance = max(pvariance(differences), 1 / rows) if rows else 1.0
    return rows < rows_to_show(gates.max_forgetting, variance, gates.confidence)
