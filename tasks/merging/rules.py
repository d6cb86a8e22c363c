"""What is asked of the catalogue, checked before anything loads, and the catalogue as tables for the documentation."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from tasks.errors import Problem, SpecRefused, raise_if_any
from tasks.merging.catalogue import DIALECTS, ENTRYWISE, MEASURED, RULES, Rule

if TYPE_CHECKING:
    from tasks.specs import MergeSpec


def rule_named(name: str) -> Rule:
    """The row of a name.

    Raises:
        SpecRefused: there is none.
    """
    if name not in RULES:
        raise SpecRefused(_unknown(name, "rule"))
    return RULES[name]


def check_rules(spec: MergeSpec) -> None:
    """Refuse rules that the catalogue does not have, and settings that would be ignored or cannot be computed.

    Raises:
        SpecRefused: with every problem of every rule.
    """
    tasks = [_task_of(parent) for parent in spec.parents]
    problems = []
    for place, asked in enumerate(spec.rules):
        where = f"rules.{place}"
        row = RULES.get(asked.rule)
        if asked.rule in MEASURED:
            if asked.weights:
                remedy = "leave weights out; the rows decide"
                problems.append(Problem("E-MERGE-007", f"{where}.weights", f"{asked.rule} takes none", remedy))
            if asked.density != (1.0,):
                wrong = f"{asked.rule} keeps every entry"
                problems.append(Problem("E-MERGE-002", f"{where}.density", wrong, "leave density out"))
            continue
        if row is None:
            problems.append(_unknown(asked.rule, f"{where}.rule"))
            continue
        if not row.needs_density and asked.density != (1.0,):
            wrong = f"{row.name} keeps every entry"
            problems.append(Problem("E-MERGE-002", f"{where}.density", wrong, "leave density out"))
        for task in sorted(set(asked.weights) - set(tasks)):
            wrong = f"'{task}' is no parent"
            problems.append(Problem("E-MERGE-003", f"{where}.weights", wrong, f"name one of {', '.join(tasks)}"))
        weights = [asked.weights.get(task, 1.0) for task in tasks]
        problems += weight_problems(row, weights, f"{where}.weights")
    for place, name in enumerate(spec.search.rules if spec.search else ()):
        where = f"search.rules.{place}"
        if name in MEASURED:
            problems.append(Problem("E-MERGE-009", where, f"{name} has no settings", "list it under rules"))
        elif name not in RULES:
            problems.append(_unknown(name, where))
        else:
            problems += weight_problems(RULES[name], [1.0] * len(tasks), where)
    raise_if_any(SpecRefused, problems)


def weight_problems(rule: Rule, weights: list[float], where: str) -> list[Problem]:
    """What keeps weights, one per parent, from being merged by a rule."""
    if all(weight == 0 for weight in weights):
        return [Problem("E-MERGE-004", where, "all weights are 0", "give at least one parent a weight")]
    if rule.means and abs(sum(weights)) < 1e-9:
        wrong = "the weights of a mean sum to 0"
        return [Problem("E-MERGE-004", where, wrong, "use task_arithmetic, whose weights need no sum")]
    taking_part = sum(weight != 0 for weight in weights)
    if rule.parents is not None and taking_part != rule.parents:
        wrong = f"{rule.name} merges {rule.parents} parents, {taking_part} take part"
        return [Problem("E-MERGE-008", where, wrong, "give the others weight 0, or use another rule")]
    return []


def rules_table() -> str:
    """The catalogue as a Markdown table, for the documentation."""
    rows = ["| rule | what it does | linear | density | seed | source |", "|---|---|---|---|---|---|"]
    for row in RULES.values():
        marks = " | ".join("yes" if mark else "" for mark in (row.linear, row.needs_density, row.draws))
        rows.append(f"| `{row.name}` | {row.title} | {marks} | {row.paper} |")
    rows += [f"| `{row.name}` | {row.title} |  |  |  | {row.paper} |" for row in MEASURED.values()]
    return "\n".join(rows)


def dialects_table() -> str:
    """Where the sign-electing rules differ, as a Markdown table, for the documentation."""
    words = {
        "over": "trim over",
        "kept": "entries kept",
        "vote": "sign vote",
        "divisor": "divisor",
        "draw": "exact draw",
    }
    dialects = [row for row in (*ENTRYWISE, *DIALECTS) if "vote" in row.dialect]
    rows = ["| | " + " | ".join(f"`{row.name}`" for row in dialects) + " |", "|---" * (len(dialects) + 1) + "|"]
    for key, word in words.items():
        cells = " | ".join(
            str(row.dialect.get(key, "random" if key == "kept" else "")).replace("_", " ") for row in dialects
        )
        rows.append(f"| {word} | {cells} |")
    return "\n".join(rows)


def _unknown(name: str, where: str) -> Problem:
    known = [*RULES, *MEASURED]
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"choose of {', '.join(known)}"
    return Problem("E-MERGE-001", where, f"'{name}' is no merge rule", remedy)


def _task_of(reference: str) -> str:
    """The task of "triage@champion" or "triage:3"."""
    return reference.split("@")[0].split(":")[0]
