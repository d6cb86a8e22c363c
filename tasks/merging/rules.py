"""The merge rules, one row each; torch-free, so that a spec with an unknown rule is refused before anything loads.

Every rule returns the merged update unscaled, and all of them are homogeneous, merge(c dW) = c merge(dW): a factor
can be put on afterwards, so a search over scales merges once per rule and density. Adding a rule is adding a row.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tasks.errors import Problem, SpecRefused, raise_if_any
from tasks.merging import alignment, consensus
from tasks.merging.consensus import Ask
from tasks.merging.stack import Stack
from tasks.specs import MergeSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """A row.

    Attributes:
        dense: the merged update of one module, float32 (out, in).
        factored: the same as (B, A) with B A = the update, where the rule has a low-rank result and all parents have
            factors.
        linear: a weighted sum, so it can be truncated exactly.
        needs_density: reads the density.
        draws: depends on the seed.
        keeps_one: one parent at weight 1 and density 1 comes back unchanged.
        dialect: where implementations differ, what this row does.
    """

    name: str
    title: str
    paper: str
    dense: Callable[[Stack, Ask], Tensor] = field(repr=False)
    factored: Callable[[Stack, Ask], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)
    linear: bool = False
    needs_density: bool = True
    draws: bool = False
    keeps_one: bool = True
    dialect: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def _in_dialect(
    name: str, title: str, paper: str, dense: Callable[..., Tensor], *, draws: bool = False, **dialect: Any
) -> Rule:
    """A row whose dialect is both what it computes with and what the documentation shows."""
    return Rule(name, title, paper, partial(dense, **dialect), draws=draws, dialect=MappingProxyType(dialect))


TIES = "Yadav et al. 2023, arXiv:2306.01708"
DARE = "Yu et al. 2023, arXiv:2311.03099"
KNOTS = "Stoica et al. 2024, arXiv:2410.19735"

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        row.name: row
        for row in (
            Rule(
                name="average",
                title="weighted mean of the updates",
                paper="Wortsman et al. 2022, arXiv:2203.05482",
                dense=partial(alignment.linear_dense, mean=True),
                factored=partial(alignment.linear_factors, mean=True),
                linear=True,
                needs_density=False,
            ),
            Rule(
                name="task_arithmetic",
                title="weighted sum of the updates; a negative weight removes a skill",
                paper="Ilharco et al. 2023, arXiv:2212.04089",
                dense=partial(alignment.linear_dense, mean=False),
                factored=partial(alignment.linear_factors, mean=False),
                linear=True,
                needs_density=False,
            ),
            _in_dialect(
                "ties",
                "trim each tensor, elect signs by weight, weighted mean of those that agree",
                TIES,
                consensus.ties,
                kept="ceil",
                over="tensor",
                vote="weighted",
                divisor="weights",
                draw="none",
            ),
            _in_dialect(
                "ties_paper",
                "TIES as the paper's code does it: one threshold per parent for the whole model",
                TIES,
                consensus.ties,
                kept="floor_plus_one",
                over="model",
                vote="equal",
                divisor="count",
                draw="majority",
            ),
            _in_dialect(
                "ties_peft",
                "TIES as PEFT does it, on exact updates (ties_svd at full rank)",
                TIES,
                consensus.ties,
                kept="floor",
                over="tensor",
                vote="equal",
                divisor="count",
                draw="plus",
            ),
            _in_dialect(
                "magnitude_prune",
                "weighted sum of each tensor's largest entries",
                TIES,
                consensus.magnitude_prune,
                kept="ceil",
            ),
            Rule(
                name="dare",
                title="weighted sum of randomly dropped, rescaled updates",
                paper=DARE,
                dense=consensus.dare,
                draws=True,
            ),
            _in_dialect(
                "dare_ties",
                "DARE's drop in place of the trim, then elect and agree",
                DARE,
                consensus.dare_ties,
                draws=True,
                vote="weighted",
                divisor="weights",
                draw="none",
            ),
            Rule(
                name="knots_ties",
                title="TIES in the basis that the parents share",
                paper=KNOTS,
                dense=alignment.knots_dense,
                factored=alignment.knots_factors,
            ),
            Rule(
                name="iso_c",
                title="weighted sum with all singular values set to their mean",
                paper="Marczak et al. 2025, arXiv:2502.04959",
                dense=alignment.iso_dense,
                factored=alignment.iso_factors,
                needs_density=False,
                keeps_one=False,
            ),
        )
    }
)


@dataclass(frozen=True)
class MeasuredRule:
    """A rule that also reads rows of every parent's task, and so runs the base; see `regression.py`."""

    name: str
    title: str
    paper: str
    needs_density: bool = False


MEASURED: Mapping[str, MeasuredRule] = MappingProxyType(
    {
        "regmean": MeasuredRule(
            "regmean",
            "least squares: answers each task's validation rows as its own adapter does",
            "Jin et al. 2023, arXiv:2212.09849",
        )
    }
)


def reads_density(name: str) -> bool:
    """Whether a rule of either table trims by density."""
    return RULES[name].needs_density if name in RULES else MEASURED[name].needs_density


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
    raise_if_any(SpecRefused, problems)


def weight_problems(rule: Rule, weights: list[float], where: str) -> list[Problem]:
    """What keeps weights, one per parent, from being merged by a rule."""
    if all(weight == 0 for weight in weights):
        return [Problem("E-MERGE-004", where, "all weights are 0", "give at least one parent a weight")]
    if rule.name == "average" and abs(sum(weights)) < 1e-9:
        wrong = "the weights of a mean sum to 0"
        return [Problem("E-MERGE-004", where, wrong, "use task_arithmetic, whose weights need no sum")]
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
    dialects = [row for row in RULES.values() if "vote" in row.dialect]
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
