"""Guards on single rows that no expectation states: spelling of classes, sides, scripts, lengths, frozen rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.data.admission import Fallen, shown
from tasks.data.examples import input_columns, label_column, normalised, target_columns
from tasks.data.labels import spelt_otherwise
from tasks.data.leakage import Placed
from tasks.data.scripts import script_of
from tasks.data.splits import DECLARED, declared_side, time_of
from tasks.specs import AdapterSpec

Records = Sequence[Mapping[str, Any]]
CountTokens = Callable[[Sequence[str]], list[int]]
COUNTED_AT_ONCE = 4096


def mixed_spelling(spec: AdapterSpec, records: Records, standing: Sequence[int]) -> list[Fallen]:
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


def unknown_sides(spec: AdapterSpec, records: Records, standing: Sequence[int]) -> list[Fallen]:
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


def unknown_groups(spec: AdapterSpec, records: Records, standing: Sequence[int]) -> list[Fallen]:
    """Rows without the group or the time by which the spec splits."""
    split = spec.data.split
    if split.time is not None:
        return [
            Fallen(at, "group_is_known", split.time, f"{shown(value)} is no ISO 8601 date or time")
            for at in standing
            if time_of(value := records[at].get(split.time)) is None
        ]
    if split.group is not None:
        return [
            Fallen(at, "group_is_known", split.group, f"{shown(value)} names no group")
            for at in standing
            if (value := records[at].get(split.group)) is None
            or isinstance(value, list | dict)
            or not str(value).strip()
        ]
    return []


def invisible(spec: AdapterSpec, placed: Sequence[Placed]) -> list[Fallen]:
    """Examples whose rendered input or target has nothing to read."""
    sides = (("input", ", ".join(input_columns(spec))), ("target", ", ".join(target_columns(spec))))
    return [
        Fallen(row.at, "example_is_visible", columns, f"the rendered {part} is empty")
        for row in placed
        for part, columns in sides
        if not normalised(getattr(row.example, part))
    ]


def foreign_scripts(spec: AdapterSpec, placed: Sequence[Placed]) -> list[Fallen]:
    """Inputs whose letters are mostly of a script that the spec does not name; one without letters is of none."""
    allowed = {*spec.data.scripts, ""}
    if not spec.data.scripts:
        return []
    column = ", ".join(input_columns(spec))
    return [
        Fallen(row.at, "input_is_in_an_allowed_script", column, f"{script} letters in {shown(row.example.input)}")
        for row in placed
        if (script := script_of(row.example.input)) not in allowed
    ]


def too_long(spec: AdapterSpec, placed: Sequence[Placed], tokens: Mapping[int, int]) -> list[Fallen]:
    """Examples above `data.max_tokens`; cutting them unasked would hide the end of the prompt or the answer."""
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
