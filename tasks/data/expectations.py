"""Rules that a user names as Great Expectations does: found, or refused where they are wrong or cannot fail."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.data.admission import shown
from tasks.errors import Problem, SpecRefused, raise_if_any
from tasks.specs import ExpectationSpec

_OURS = {"severity", "result_format", "catch_exceptions", "batch_id", "windows", "id", "rendered_content"}
_CODE = {"row_condition", "condition_parser"}  # pandas evaluates them as an expression
_CONDITIONS = {"min_value", "max_value", "regex", "column_set", "type_list", "partition_object", "threshold"}


def rules_of_the_spec(gxe: Any, rules: Sequence[ExpectationSpec]) -> list[Any]:
    """The expectations that a spec names; `gxe` is the module `great_expectations.expectations`.

    Raises:
        SpecRefused: with one problem per rule that does not exist, has arguments it does not take, or checks nothing.
    """
    built, problems = [], []
    for number, rule in enumerate(rules):
        where = f"data.expectations[{number}]"
        kind = class_of(gxe, rule.expect)
        if kind is None:
            wrong = f"Great Expectations has no '{rule.expect}'"
            problems.append(Problem("E-SPEC-035", f"{where}.expect", wrong, _nearest(rule.expect, _names(gxe))))
        elif refused := _arguments_wrong(kind, rule.arguments):
            problems.append(Problem("E-SPEC-036", f"{where}.arguments", f"{rule.expect}: {refused[0]}", refused[1]))
        else:
            built.append(kind(**rule.arguments, severity=rule.severity))
    raise_if_any(SpecRefused, problems)
    return built


def _arguments_wrong(kind: Any, arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with the arguments of a rule and what to do, or None."""
    takes = [
        name for name in kind.__fields__ if name not in _OURS | _CODE and name not in ("meta", "notes", "description")
    ]
    if stray := [name for name in arguments if name in _CODE]:
        return f"'{stray[0]}' is run as code", "keep rows by data.where instead"
    if stray := [name for name in arguments if name not in kind.__fields__ or name in _OURS]:
        return f"it has no argument '{stray[0]}'", _nearest(stray[0], takes)
    conditions = [name for name in takes if name in _CONDITIONS or (name == "column_list" and "Table" in kind.__name__)]
    if conditions and not any(arguments.get(name) is not None for name in conditions):
        return "it has nothing to check", f"give {' or '.join(conditions)}"
    patterns = [arguments[name] for name in ("regex", "regex_list") if name in arguments]
    for pattern in (text for part in patterns for text in ([part] if isinstance(part, str) else part)):
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            return f"{shown(pattern)} is not a regular expression: {error}", "write one that Python's re module reads"
    try:
        kind(**arguments)
    except (ValueError, TypeError) as error:  # pydantic's own error, of the version that Great Expectations vendors
        details = error.errors() if hasattr(error, "errors") else [{"loc": (), "msg": str(error)}]
        said = "; ".join(
            dict.fromkeys(f"{detail['loc'][0] if detail['loc'] else ''}: {detail['msg']}" for detail in details)
        )
        return said.replace("__root__: ", "").lstrip(": "), f"it takes {', '.join(takes)}"
    return None


def class_of(gxe: Any, name: str) -> Any:
    """The expectation of that name, in snake or camel case; None if there is none."""
    return next((kind for kind in _kinds(gxe) if name in (kind.__name__, kind.expectation_type)), None)


def _names(gxe: Any) -> list[str]:
    return [name for kind in _kinds(gxe) for name in (kind.expectation_type, kind.__name__)]


def _kinds(gxe: Any) -> list[Any]:
    """Rules that can judge a table in memory; those that query a database cannot."""
    found = [kind for name, kind in vars(gxe).items() if name.startswith("Expect") and inspect.isclass(kind)]
    return [
        kind
        for kind in found
        if getattr(kind, "expectation_type", "").startswith("expect_") and "Query" not in kind.__name__
    ]


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(names[:8])}, ..."
