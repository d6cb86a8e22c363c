"""What the door answers: the rows it let in, the rows it kept out, and what was checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tasks.data.examples import Example
from tasks.errors import Problem
from tasks.specs import Severity, Side

RowUnit = Literal["line", "record"]
SHOWN_CHARACTERS = 80


class Guard(NamedTuple):
    """A reason for which a row is kept out: its error code, and what to do about it."""

    code: str
    remedy: str


GUARDS: Mapping[str, Guard] = MappingProxyType(
    {
        "row_is_readable": Guard("E-DATA-011", "mend the row"),
        "expectation": Guard("E-DATA-012", "mend the row, or relax the rule"),
        "label_is_spelt_as_others": Guard("E-DATA-013", "write one class one way, or name both in data.labels"),
        "example_fits_max_tokens": Guard("E-DATA-014", "shorten the row, or raise data.max_tokens"),
        "example_is_visible": Guard("E-DATA-015", "give the row an input and an answer that can be read"),
        "one_input_one_target": Guard(
            "E-DATA-016", "keep the right one; if many are good, set evaluation.metric: token_accuracy"
        ),
        "one_side_per_input": Guard("E-DATA-017", "keep the input on one side"),
        "frozen_rows_only_test": Guard("E-DATA-018", "leave the row out of training; it judges"),
        "side_is_known": Guard("E-DATA-019", "write train, validation (valid, val, dev) or test"),
        "row_has_its_layout": Guard("E-DATA-024", "mend the row, or change data.layout"),
        "group_is_known": Guard("E-DATA-025", "give the row its group or its time"),
        "input_is_in_an_allowed_script": Guard("E-DATA-026", "leave the row out, or name its script in data.scripts"),
        "target_has_tokens": Guard("E-DATA-027", "give the row an answer that the base's tokenizer can write"),
        "no_near_leak": Guard("E-DATA-028", "leave the row out, or raise data.near.similarity"),
    }
)


class Fallen(NamedTuple):
    """A row that a check keeps out; `at` is its place in the records that were read."""

    at: int
    guard: str
    field: str
    reason: str


@dataclass(frozen=True)
class Quarantined:
    """A row that was kept out, with the first reason found. `guard` is the check that found it, ours or GX's."""

    row: int
    field: str
    reason: str
    record: Mapping[str, Any]
    guard: str
    file: str = ""

    def problem(self, where: str) -> Problem:
        code, remedy = GUARDS.get(self.guard, GUARDS["expectation"])
        return Problem(code, where, self.reason, remedy)


@dataclass(frozen=True)
class Check:
    """One rule and its outcome over `evaluated` values. Offenders of a critical rule on rows are quarantined."""

    name: str
    column: str
    severity: Severity
    passed: bool
    evaluated: int
    unexpected: int
    samples: tuple[str, ...] = ()
    detail: str = ""


class NearPair(NamedTuple):
    """Two inputs that are nearly the same: the row in question, what it nearly repeats, and how near they are."""

    kind: Literal["leak", "repeat"]
    at: int
    file: str
    row: int
    side: str
    input: str
    other: str
    other_input: str
    similarity: float
    same_target: bool


@dataclass(frozen=True)
class Around:
    """What depends on more than the rows: on the base, on what judged before, on traffic, on what is installed here.

    It is told and shown, and is no part of a snapshot, whose bytes follow from rows and spec alone.
    """

    notices: tuple[Check, ...] = ()
    languages: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Admission:
    """A data set that may be learned from. rows_in = accepted + quarantined + deduplicated."""

    task: str
    kind: str
    source: str
    source_digest: str
    columns: tuple[str, ...]
    row_unit: RowUnit
    rows_in: int
    filtered: int
    examples: Mapping[Side, tuple[Example, ...]]
    quarantined: tuple[Quarantined, ...]
    deduplicated: int
    checks: tuple[Check, ...]
    suite: Mapping[str, Any]
    truncated: int = 0
    labels: tuple[str, ...] = ()
    label_counts: Mapping[Side, Mapping[str, int]] = field(default_factory=dict)
    lengths: Mapping[Side, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    near: tuple[NearPair, ...] = ()
    around: Around = Around()

    @property
    def accepted(self) -> int:
        return sum(len(side) for side in self.examples.values())

    @property
    def counts(self) -> dict[Side, int]:
        return {side: len(examples) for side, examples in self.examples.items()}


def shown(value: object) -> str:
    """A value as it appears in a message: quoted and at most 80 characters long.

    >>> shown("a" * 200)[-20:]
    'aaaaa... (200 chars)'
    """
    text = repr(value[: SHOWN_CHARACTERS + 1]) if isinstance(value, str) else repr(value)
    if len(text) <= SHOWN_CHARACTERS + 2:
        return text
    size = f" ({len(value)} chars)" if isinstance(value, str) else ""
    return f"{text[:SHOWN_CHARACTERS]}...{size}"


def type_found(value: object) -> str:
    """The type of a value in the words of JSON, or Python's where JSON has none.

    >>> type_found(True), type_found(3), type_found({"a": 1})
    ('boolean', 'integer', 'object')
    """
    names = {
        "NoneType": "null",
        "bool": "boolean",
        "int": "integer",
        "float": "number",
        "dict": "object",
        "str": "text",
    }
    return names.get(type(value).__name__, type(value).__name__)
