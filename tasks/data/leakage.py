"""What only the rows together show: repeated inputs, inputs with two answers, and inputs that lie on two sides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tasks.data.admission import Fallen, shown
from tasks.data.examples import Example
from tasks.specs import Side

# what judges stays whole; what learns gives way
_KEPT_FIRST: dict[Side, int] = {"test": 0, "validation": 1, "train": 2}


@dataclass(frozen=True, slots=True)
class Placed:
    """An example on its side; `at` is its place in the records that were read."""

    example: Example
    side: Side
    at: int


class Settled(NamedTuple):
    """Rows in = rows + contradicting + leaking + repeated."""

    rows: list[Placed]
    contradicting: list[Fallen]
    leaking: list[Fallen]
    repeated: list[Placed]


def settled(rows: Iterable[Placed], *, one_target: bool, input_field: str = "", target_field: str = "") -> Settled:
    """Every input on one side, every (input, target) once; with `one_target`, every input with one target.

    An input with two targets falls on all its rows, since nothing here can tell which one is right. An input on two
    sides stays where it judges. Of equal rows the first stays. Order is kept.
    """
    groups: dict[str, list[Placed]] = {}
    for row in rows:
        groups.setdefault(row.example.key, []).append(row)
    kept: list[Placed] = []
    contradicting: list[Fallen] = []
    leaking: list[Fallen] = []
    repeated: list[Placed] = []
    for group in groups.values():
        if len(group) == 1:
            kept += group
        elif one_target and (clash := _contradictions(group, target_field)):
            contradicting += clash
        else:
            side = min((row.side for row in group), key=_KEPT_FIRST.__getitem__)
            judge = next(row for row in group if row.side == side)
            targets: set[str] = set()
            for row in group:
                if row.side != side:
                    reason = f"also in {side}: same input as {_place(judge, row)}"
                    leaking.append(Fallen(row.at, "one_side_per_input", input_field, reason))
                elif row.example.target in targets:
                    repeated.append(row)
                else:
                    targets.add(row.example.target)
                    kept.append(row)
    return Settled(
        rows=sorted(kept, key=lambda row: row.at),
        contradicting=sorted(contradicting),
        leaking=sorted(leaking),
        repeated=sorted(repeated, key=lambda row: row.at),
    )


def _contradictions(group: list[Placed], field: str) -> list[Fallen]:
    """All rows of a group with two targets, each with the first row that contradicts it."""
    first = group[0]
    other = next((row for row in group if row.example.target != first.example.target), None)
    if other is None:
        return []
    found = []
    for row in group:
        against = other if row.example.target == first.example.target else first
        reason = f"same input as {_place(against, row)}, where the answer is {shown(against.example.target)}"
        found.append(Fallen(row.at, "one_input_one_target", field, f"{reason}; here {shown(row.example.target)}"))
    return found


def _place(row: Placed, seen_from: Placed) -> str:
    file = f" of {row.example.file}" if row.example.file != seen_from.example.file else ""
    return f"row {row.example.row}{file}"
