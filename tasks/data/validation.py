"""The data contract: a Great Expectations suite built from the spec, and what it says of a table.

Great Expectations passes an empty table, a table of one class and white space, and reports a rule that crashed beside
rules that failed. So the suite states rows, classes and visible text, and a rule that could not run is never a pass.
Importing it takes about four seconds, so that happens in the function that needs it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.data.admission import shown, type_found
from tasks.data.examples import VISIBLE, label_column, target_columns, text_columns
from tasks.data.expectations import class_of, rules_of_the_spec
from tasks.data.reading import missing_columns
from tasks.specs import AdapterSpec, Severity

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

CHARACTERS_PER_TOKEN = 64  # no tokenizer averages more, so a longer text need not be counted in tokens
NUL = r"\x00"

_COLUMN_ARGUMENTS = ("column", "column_A", "column_B", "column_list")


@dataclass(frozen=True)
class Verdict:
    """What one rule says. `offenders` are positions in the table, None for a rule that judges it as a whole."""

    rule: str
    arguments: Mapping[str, Any]
    severity: Severity
    passed: bool
    evaluated: int
    unexpected: int
    offenders: tuple[int, ...] | None
    observed: str
    error: str

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(_columns_named(self.arguments))

    @property
    def column(self) -> str:
        return ", ".join(self.columns)


def suite_for(spec: AdapterSpec, columns: Sequence[str]) -> ExpectationSuite:
    """The suite that the task kind implies, then the rules of the spec; it round-trips through `to_json_dict()`.

    Raises:
        DataRefused: a column that the spec or a rule names is not among `columns`.
        SpecRefused: a rule that Great Expectations does not have, arguments it does not take, or nothing to check.
    """
    needed = [*text_columns(spec), *([spec.data.split.column] if spec.data.split.column else [])]
    for rule in spec.data.expectations:
        if rule.expect not in ("expect_column_to_exist", "ExpectColumnToExist"):
            needed += _columns_named(rule.arguments)
    if missing := [name for name in dict.fromkeys(needed) if name not in columns]:
        raise missing_columns(spec.data.source, missing, tuple(columns))
    gx, gxe = great_expectations()
    implied = [class_of(gxe, name)(**arguments, severity="critical") for name, arguments in implied_rules(spec)]
    return gx.ExpectationSuite(name=spec.task, expectations=[*implied, *rules_of_the_spec(gxe, spec.data.expectations)])


def implied_rules(spec: AdapterSpec) -> list[tuple[str, dict[str, Any]]]:
    """What the kind of task asks of its data, by Great Expectations names; all critical."""
    longest = longest_characters(spec)
    label, split = label_column(spec), spec.data.split.column
    rules: list[tuple[str, dict[str, Any]]] = [
        ("expect_table_row_count_to_be_between", {"min_value": spec.data.min_rows})
    ]
    rules += [("expect_column_to_exist", {"column": name}) for name in text_columns(spec)]
    rules += [("expect_column_to_exist", {"column": split})] if split and split not in text_columns(spec) else []
    for name in text_columns(spec):
        rules += [
            ("expect_column_values_to_not_be_null", {"column": name}),
            ("expect_column_values_to_be_of_type", {"column": name, "type_": "str"}),
            ("expect_column_values_to_not_match_regex", {"column": name, "regex": NUL}),
            ("expect_column_values_to_match_regex", {"column": name, "regex": VISIBLE}),
        ]
        if spec.data.overlong != "truncate":
            rules.append(("expect_column_value_lengths_to_be_between", {"column": name, "max_value": longest}))
    if label and spec.data.labels:
        rules.append(("expect_column_values_to_be_in_set", {"column": label, "value_set": list(spec.data.labels)}))
    for name in target_columns(spec) if spec.data.target_format == "json" else ():
        rules.append(("expect_column_values_to_be_json_parseable", {"column": name}))
    for name in target_columns(spec) if spec.data.target_regex else ():
        rules.append(("expect_column_values_to_match_regex", {"column": name, "regex": spec.data.target_regex}))
    if spec.kind == "classification":
        rules.append(("expect_column_unique_value_count_to_be_between", {"column": spec.data.label, "min_value": 2}))
    return rules


def longest_characters(spec: AdapterSpec) -> int:
    """Characters above which no tokenizer could make the text fit."""
    return spec.data.max_tokens * CHARACTERS_PER_TOKEN


def longest_text(spec: AdapterSpec, verdict: Verdict) -> bool:
    """Whether a verdict is that of the implied rule on characters."""
    asked = {name: value for name, value in verdict.arguments.items() if value is not None and name != "column"}
    return verdict.rule == "expect_column_value_lengths_to_be_between" and asked == {
        "max_value": longest_characters(spec)
    }


def frame_of(table: Mapping[str, Sequence[Any]]) -> Any:
    """A pandas frame of Python objects: no type is guessed."""
    import pandas as pd

    return pd.DataFrame({name: pd.Series(_hashable(values), dtype=object) for name, values in table.items()})


def verdicts(suite: ExpectationSuite, table: Mapping[str, Sequence[Any]]) -> tuple[Verdict, ...]:
    """What every rule says of a table of columns, in the order of the suite. Texts such as NA stay texts.

    A rule that raised, or saw no value, has `error` and did not pass.
    """
    gx, _ = great_expectations()
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    frame = frame_of(table)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    complete = {"result_format": "COMPLETE", "return_unexpected_index_query": False, "partial_unexpected_count": 0}
    outcome = batch.validate(suite, result_format=complete)
    found = {_identity(result.expectation_config): _verdict(result, len(frame)) for result in outcome.results}
    return tuple(found[_identity(rule.configuration)] for rule in suite.expectations)


def great_expectations() -> tuple[Any, Any]:
    """The library and its expectations, with its telemetry off."""
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx, gxe


def _columns_named(arguments: Mapping[str, Any]) -> list[str]:
    named: list[str] = []
    for value in (arguments.get(name) for name in _COLUMN_ARGUMENTS):
        named += [value] if isinstance(value, str) else [name for name in value or () if isinstance(name, str)]
    return named


def _identity(configuration: Any) -> str:
    arguments = {name: value for name, value in configuration.kwargs.items() if name != "batch_id"}
    return json.dumps([configuration.type, arguments, str(configuration.severity)], sort_keys=True, default=str)


def _verdict(result: Any, rows: int) -> Verdict:
    configuration, found = result.expectation_config, result.result or {}
    arguments = {name: value for name, value in configuration.kwargs.items() if name != "batch_id"}
    rowwise = "element_count" in found
    evaluated = found["element_count"] - (found.get("missing_count") or 0) if rowwise else rows
    error = _exception(result.exception_info or {})
    if not error and evaluated == 0:
        error = "it saw no value"
    indexes = found.get("unexpected_index_list")
    return Verdict(
        rule=configuration.type,
        arguments=arguments,
        severity="critical"
        if str(getattr(configuration.severity, "value", configuration.severity)) == "critical"
        else "warning",
        passed=bool(result.success) and not error,
        evaluated=int(evaluated),
        unexpected=int(found.get("unexpected_count") or 0),
        offenders=tuple(int(at) for at in indexes or ()) if rowwise else None,
        observed=shown(found["observed_value"]) if "observed_value" in found else "",
        error=error,
    )


def _exception(info: Mapping[str, Any]) -> str:
    """The message of the first exception: the record is flat, or one per metric."""
    for part in [info, *info.values()]:
        if isinstance(part, Mapping) and part.get("raised_exception") in (True, "True"):
            return str(part.get("exception_message") or "it raised").strip().split("\n", 1)[0][:200]
    return ""


def reason_of(verdict: Verdict, value: object, labels: Mapping[str, str]) -> str:
    """Why a value offends a rule, in words; `labels` maps a wrong label to the nearest right one."""
    rule, arguments = verdict.rule, verdict.arguments
    if rule == "expect_column_values_to_not_be_null":
        return "null where text is expected"
    if rule == "expect_column_values_to_be_of_type" and arguments.get("type_") == "str":
        return f"{type_found(value)} where text is expected: {shown(value)}"
    if rule == "expect_column_values_to_match_regex" and arguments.get("regex") == VISIBLE:
        return f"no visible character in {shown(value)}"
    if rule == "expect_column_values_to_not_match_regex" and arguments.get("regex") == NUL:
        return f"NUL character in {shown(value)}"
    if rule == "expect_column_value_lengths_to_be_between" and isinstance(value, str):
        bounds = " to ".join(str(arguments[name]) for name in ("min_value", "max_value") if name in arguments)
        return f"{len(value):,} characters where {bounds} are allowed"
    if rule == "expect_column_values_to_be_in_set" and isinstance(value, str) and value in labels:
        near = labels[value]
        return f"{shown(value)} is not in the set; " + (
            f"nearest is {shown(near)}" if near else "nothing in it is near"
        )
    return f"{rule} fails for {shown(value)}" + (f": {said}" if (said := conditions_of(verdict)) else "")


def conditions_of(verdict: Verdict) -> str:
    """What a rule asks for beside its columns, and what it found, in words; empty if there is nothing of either."""
    arguments = {name: value for name, value in verdict.arguments.items() if name not in _COLUMN_ARGUMENTS}
    asked = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())
    parts = (f"expects {asked}" if asked else "", f"found {verdict.observed}" if verdict.observed else "")
    return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class _Nested:
    """A list or an object as its JSON: still no text, but pandas can hash it, so that one such row is no crash."""

    json: str


def _hashable(values: Sequence[Any]) -> list[Any]:
    return [_Nested(json.dumps(value, default=repr)) if isinstance(value, (list, dict)) else value for value in values]
