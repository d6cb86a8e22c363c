"""Where rows come from, how a row becomes an example, and on which side it lies."""

from __future__ import annotations

import re
import string
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.specs.common import Severity, Share, Spec


class SplitSpec(Spec):
    """Which rows are learned from, which choose, which judge. By hash of the input, so a row never changes side."""

    column: str | None = Field(
        None, description="Column that already names the side (train, validation/valid/dev, test)."
    )
    group: str | None = Field(
        None, description="Column whose rows stay together (a customer, a thread): its value is hashed, not the input."
    )
    time: str | None = Field(None, description="Column of ISO 8601 dates or times: what comes later judges.")
    validation_from: str | None = Field(None, description="time: first moment that chooses, such as 2026-01-01.")
    test_from: str | None = Field(None, description="time: first moment that judges, such as 2026-03-01.")
    stratify: bool = Field(
        False, description="Every class of three or more rows lies on every side; the hash decides which rows."
    )
    validation: Share = Field(0.1, description="Share of inputs that choose (early stop, merge weights).")
    test: Share = Field(0.1, description="Share of inputs that judge; never learned from, also not later.")

    @model_validator(mode="after")
    def _something_is_left_to_learn_from(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1: something must be left to learn from")
        return self

    @model_validator(mode="after")
    def _one_rule_decides(self) -> Self:
        if sum(rule is not None for rule in (self.column, self.group, self.time)) > 1:
            raise ValueError("column, group and time exclude one another: one rule decides the side")
        if self.stratify and (self.column or self.group or self.time):
            raise ValueError("stratify goes with the hash rule alone, without column, group or time")
        if (self.time is None) != (self.test_from is None) or (self.validation_from and not self.time):
            raise ValueError("time needs test_from (and may have validation_from): fixed moments, so no row ever moves")
        if self.time is None:
            return self
        moments = [moment_of(text) for text in (self.validation_from, self.test_from) if text is not None]
        if moments != sorted(moments):
            raise ValueError("validation_from must not be later than test_from")
        return self


class NearSpec(Spec):
    """Inputs that are nearly the same: Jaccard index of their 5-character shingles."""

    similarity: float = Field(0.8, ge=0.5, le=1, description="From this index on two inputs count as nearly the same.")
    leaks: Literal["warn", "quarantine", "refuse"] = Field(
        "warn",
        description="A row that is learned from and nearly a row that judges: shown, kept out, or the set is refused. "
        "Shown by default, since 'order 17 is late' and 'order 18 is late' may both be right.",
    )
    repeats: Literal["warn", "drop"] = Field(
        "warn", description="Rows of one side that nearly repeat an earlier one: shown, or deduplicated."
    )


class ExpectationSpec(Spec):
    """One Great Expectations rule, by its own name."""

    expect: str = Field(
        pattern=r"^(expect_[a-z_]+|Expect[A-Za-z]+)$",
        description="Name in Great Expectations: expect_column_values_to_match_regex.",
    )
    severity: Severity = Field(
        "critical", description="critical refuses the rows or the set; warning is shown and recorded."
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the rule, such as column and regex."
    )


class DataSpec(Spec):
    """Where the rows are, how a row becomes an example, and how many may be bad."""

    source: str = Field(
        description="JSONL, CSV, Parquet or Arrow file, a folder of one of them, a `datasets` hub id, or (with "
        "`query`) an SQLAlchemy URL without a password (drivers read theirs from PGPASSWORD, ~/.pgpass, ...)."
    )
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="Full commit hash; required for a hub id."
    )
    query: str | None = Field(None, min_length=1, description="SQL that reads the rows; state an order.")
    layout: Literal["columns", "messages", "instruction"] = Field(
        "columns",
        description="generation: what a row is. messages: a chat, whose last turn is the answer; instruction: "
        "instruction, input (may be empty) and output. Both give the columns prompt and completion.",
    )
    where: dict[str, str] = Field(default_factory=dict, description="Keep only rows whose column equals this text.")
    prompt: str | None = Field(None, description="generation: template over columns, such as '{message}\\nintent:'.")
    completion: str | None = Field(
        None, description="generation: template of what the model must say, such as ' {intent}'."
    )
    text: str = Field("text", description="classification: column of the input.")
    label: str = Field("label", description="classification: column of the class name.")
    labels: tuple[str, ...] = Field(
        (), description="Closed set: class names (classification) or allowed `label_column` values."
    )
    label_column: str | None = Field(
        None, description="generation: column that must lie in `labels`, if the answer is a label."
    )
    split: SplitSpec = Field(default_factory=SplitSpec, description="Train, validation and test.")
    min_rows: int = Field(30, ge=1, description="Refuse a set with fewer accepted rows.")
    max_quarantined: Share = Field(0.05, description="Refuse a set of which more than this share is bad.")
    max_tokens: int = Field(256, ge=8, le=131072, description="Longest example in tokens, its end token included.")
    overlong: Literal["refuse", "drop", "truncate"] = Field(
        "refuse",
        description="Rows above max_tokens: refuse the set, quarantine the rows, or cut the longest input column at "
        "its end. The answer is never cut.",
    )
    min_class_rows: int = Field(0, ge=0, description="Refuse a set of which a class has fewer train rows.")
    scripts: tuple[str, ...] = Field(
        (), description="Scripts that an input may be written in, such as Latin; others are quarantined."
    )
    target_format: Literal["text", "json"] = Field("text", description="generation: what every answer must parse as.")
    target_regex: str | None = Field(
        None, min_length=1, description="generation: what every answer must match, from its first character on."
    )
    near: NearSpec = Field(default_factory=lambda: NearSpec(), description="Near duplicates and near leaks.")
    suite: str | None = Field(
        None, description="Great Expectations suite (JSON, relative to the spec); its rules join `expectations`."
    )
    expectations: tuple[ExpectationSpec, ...] = Field((), description="Further Great Expectations rules of your own.")

    @model_validator(mode="after")
    def _a_layout_gives_prompt_and_completion(self) -> Self:
        if self.layout != "columns":  # before anyone sees the value, which is frozen from then on
            object.__setattr__(self, "prompt", self.prompt or "{prompt}\n")
            object.__setattr__(self, "completion", self.completion or "{completion}")
        return self

    @field_validator("target_regex")
    @classmethod
    def _regex_compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @field_validator("prompt", "completion")
    @classmethod
    def _template_parses(cls, template: str | None) -> str | None:
        if template is not None and not columns_of(template):
            raise ValueError("a template reads at least one column, such as {message}")
        return template


def moment_of(text: str) -> datetime:
    """A date or time with its zone; UTC where it names none.

    Raises:
        ValueError: it is no ISO 8601 date or time.
    """
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def columns_of(template: str) -> tuple[str, ...]:
    """Column names that a template reads, in order.

    >>> columns_of("{message}\\nintent:")
    ('message',)

    Raises:
        ValueError: for a field with attributes, indexes, conversions or formats; templates only insert text.
    """
    names = []
    for _, name, form, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            raise ValueError(f"a template inserts plain columns such as {{message}}; found {{{name}}}")
        names.append(name)
    return tuple(names)


def render(template: str, row: dict[str, Any]) -> str:
    """The template with the row's text inserted; braces in the data stay as they are.

    >>> render("{message} ->", {"message": "a {b}"})
    'a {b} ->'
    """
    return template.format_map(row)
