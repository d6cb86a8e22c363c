"""What an admitted set is made of: classes, rows per class and side, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tasks.data.admission import Check, shown
from tasks.data.examples import label_column
from tasks.data.leakage import Placed
from tasks.data.reading import Rows
from tasks.specs import SIDES, AdapterSpec, Side

SAMPLES = 3


def classes(spec: AdapterSpec, rows: Rows, kept: Sequence[Placed]) -> tuple[str, ...]:
    """The closed set in its order, else the classes found, sorted; empty if the task has none."""
    column = label_column(spec)
    if column is None:
        return ()
    return spec.data.labels or tuple(sorted({rows.records[row.at][column] for row in kept}))


def rows_per_class(spec: AdapterSpec, rows: Rows, kept: Sequence[Placed]) -> dict[Side, dict[str, int]]:
    """Accepted rows by side and class; empty if the task has no classes."""
    column = label_column(spec)
    if column is None:
        return {}
    counted = {side: Counter(rows.records[row.at][column] for row in kept if row.side == side) for side in SIDES}
    return {side: dict(sorted(counts.items())) for side, counts in counted.items()}


def taught_classes(spec: AdapterSpec, per_class: Mapping[Side, Mapping[str, int]]) -> list[Check]:
    """Warns of classes that are asked for but never shown: a head cannot answer with them."""
    if spec.kind != "classification":
        return []
    asked = {*spec.data.labels, *(label for counts in per_class.values() for label in counts)}
    unseen = sorted(asked - per_class["train"].keys())
    samples = tuple(map(shown, unseen[:SAMPLES]))
    return [
        Check("every_class_has_train_rows", spec.data.label, "warning", not unseen, len(asked), len(unseen), samples)
    ]


def lengths(kept: Sequence[Placed], tokens: Mapping[int, int]) -> dict[Side, dict[str, dict[str, int]]]:
    """Median, 95th percentile and maximum of input and target in characters, and of the example in tokens, by side."""
    measures: dict[str, Callable[[Placed], int]] = {
        "input_characters": lambda row: len(row.example.input),
        "target_characters": lambda row: len(row.example.target),
    }
    if tokens:
        measures["tokens"] = lambda row: tokens[row.at]
    found: dict[Side, dict[str, dict[str, int]]] = {}
    for side in SIDES:
        rows = [row for row in kept if row.side == side]
        found[side] = {name: _spread(sorted(map(measure, rows))) for name, measure in measures.items() if rows}
    return found


def _spread(values: Sequence[int]) -> dict[str, int]:
    last = len(values) - 1
    return {"median": values[last // 2], "p95": values[round(last * 0.95)], "max": values[last]}
