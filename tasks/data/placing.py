"""Rows become examples, each on the side that the spec's split gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.data.examples import Example, example_of, key_of, label_column
from tasks.data.leakage import Placed
from tasks.data.reading import Rows
from tasks.data.splits import declared_side, side_at, side_in, side_of, stratified, time_of
from tasks.specs import AdapterSpec, Side, SplitSpec

SAID_EVERY = 20_000


def placed_rows(
    spec: AdapterSpec,
    rows: Rows,
    standing: Sequence[int],
    frozen: Mapping[str, str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Placed]:
    """The examples of the rows that stand, each on its side; `frozen` maps keys of earlier test rows to their slice."""
    examples = []
    for done, at in enumerate(standing):
        file, row = rows.places[at]
        examples.append(example_of(spec, rows.records[at], row, file))
        if not done % SAID_EVERY:
            on_progress(done, len(standing))
    return sided(spec, rows, standing, examples, frozen)


def sided(
    spec: AdapterSpec, rows: Rows, standing: Sequence[int], examples: Sequence[Example], frozen: Mapping[str, str]
) -> list[Placed]:
    """Each example on its side; `standing` are the places of their records."""
    split, records = spec.data.split, rows.records
    declared = {at: declared_side(records[at].get(split.column)) for at in standing} if split.column else {}
    has_validation = "validation" in declared.values() or split.validation_from is not None
    placed = [
        Placed(example, _side(split, records[at], example, declared.get(at), has_validation), at)
        for at, example in zip(standing, examples, strict=True)
    ]
    if not split.stratify:
        return placed
    column = label_column(spec)
    names = (str(records[row.at].get(column)) if column else row.example.target for row in placed)
    moved = stratified(
        ((row.example.key, name, row.side) for row, name in zip(placed, names, strict=True)), split, frozen
    )
    return [Placed(row.example, moved.get(row.example.key, row.side), row.at) for row in placed]


def _side(
    split: SplitSpec, record: Mapping[str, Any], example: Example, declared: Side | None, has_validation: bool
) -> Side:
    if declared is not None:
        return side_in(declared, example.key, split, has_validation)
    if split.group is not None:
        return side_of(key_of(str(record[split.group])), split)
    if split.time is not None and (moment := time_of(record[split.time])) is not None:
        return side_in(side_at(moment, split), example.key, split, has_validation)
    return side_of(example.key, split)
