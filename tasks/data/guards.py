"""Guards on single rows that no expectation states: spelling of classes, named sides, length in tokens, frozen rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.data.admission import Fallen, shown
from tasks.data.examples import input_columns, label_column, length_text, normalised, target_columns
from tasks.data.labels import spelt_otherwise
from tasks.data.leakage import Placed
from tasks.data.splits import DECLARED, declared_side
from tasks.specs import AdapterSpec

CountTokens = Callable[[Sequence[str]], list[int]]
COUNTED_AT_ONCE = 4096


def mixed_spelling(spec: AdapterSpec, records: Sequence[Mapping[str, Any]], standing: Sequence[int]) -> list[Fallen]:
    """Labels that differ from a more frequent one only in case or space, where no closed set says which are right."""
    column = label_column(spec)
    if column is None or spec.data.labels:
        return []
    usual = spelt_otherwise(records[at][column] for at in standing)
    return [
        Fallen(at, "label_is_spelt_as_others", column, f"{shown(label)} is elsewhere {shown(usual[label])}")
        for at in standing
        if (label := records[at][column]) in usual
    ]


def unknown_sides(spec: AdapterSpec, records: Sequence[Mapping[str, Any]], standing: Sequence[int]) -> list[Fallen]:
    """Rows whose split column names no side."""
    column = spec.data.split.column
    if column is None:
        return []
    known = ", ".join(DECLARED)
    return [
        Fallen(at, "side_is_known", column, f"{shown(records[at].get(column))} is none of {known}")
        for at in standing
        if declared_side(records[at].get(column)) is None
    ]


def invisible(spec: AdapterSpec, placed: Sequence[Placed]) -> list[Fallen]:
    """Examples whose rendered input or target has nothing to read."""
    sides = (("input", ", ".join(input_columns(spec))), ("target", ", ".join(target_columns(spec))))
    return [
        Fallen(row.at, "example_is_visible", columns, f"the rendered {part} is empty")
        for row in placed
        for part, columns in sides
        if not normalised(getattr(row.example, part))
    ]


def token_counts(spec: AdapterSpec, placed: Sequence[Placed], count_tokens: CountTokens) -> dict[int, int]:
    """Length of each example in tokens, by index; a prompt counts together with its completion.

    Raises:
        ValueError: if `count_tokens` does not return one count per text.
    """
    counts: dict[int, int] = {}
    for start in range(0, len(placed), COUNTED_AT_ONCE):
        rows = placed[start : start + COUNTED_AT_ONCE]
        lengths = count_tokens([length_text(spec.kind, row.example) for row in rows])
        counts |= zip((row.at for row in rows), lengths, strict=True)
    return counts


def too_long(spec: AdapterSpec, placed: Sequence[Placed], tokens: Mapping[int, int]) -> list[Fallen]:
    """Examples above `data.max_tokens`; cutting them would hide the end of the prompt or the answer."""
    column, most = ", ".join(input_columns(spec)), spec.data.max_tokens
    return [
        Fallen(row.at, "example_fits_max_tokens", column, f"{tokens[row.at]:,} tokens where {most:,} are allowed")
        for row in placed
        if tokens[row.at] > most
    ]


def frozen(placed: Sequence[Placed], forbidden: Mapping[str, str], column: str) -> list[Fallen]:
    """Rows that judge some version and would be learned from or chosen by."""
    return [
        Fallen(row.at, "frozen_rows_only_test", column, f"it is a frozen test row of {forbidden[row.example.key]}")
        for row in placed
        if row.side != "test" and row.example.key in forbidden
    ]
