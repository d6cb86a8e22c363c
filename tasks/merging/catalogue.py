"""The merge rules, one row each; torch-free, so that a spec with an unknown rule is refused before anything loads.

Every rule returns the merged update unscaled, and all of them are homogeneous, merge(c dW) = c merge(dW): a factor
can be put on afterwards, so a search over scales merges once per rule and density. Adding a rule is adding a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tasks.merging import alignment, blends, consensus, spectra
from tasks.merging.consensus import Ask
from tasks.merging.stack import Stack

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """A row.

    Attributes:
        dense: the merged update of one module, float32 (out, in).
        factored: the same as (B, A) with B A = the update, where the rule has a low-rank result and all parents have
            factors.
        rows: the same as a function from a row block to its rows, where the rule works entry by entry.
        linear: a sum of the updates with one factor each, so it can be truncated exactly.
        needs_density: reads the density.
        draws: depends on the seed.
        keeps_one: one parent at weight 1 and density 1 comes back unchanged.
        means: divides by the sum of the weights, which must not be 0.
        parents: merges exactly this many; None for any number.
        dialect: where implementations differ, what this row does.
    """

    name: str
    title: str
    paper: str
    dense: Callable[[Stack, Ask], Tensor] = field(repr=False)
    factored: Callable[[Stack, Ask], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)
    rows: Callable[[Stack, Ask], consensus.Rows] | None = field(default=None, repr=False)
    linear: bool = False
    needs_density: bool = True
    draws: bool = False
    keeps_one: bool = True
    means: bool = False
    parents: int | None = None
    dialect: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


TIES = "Yadav et al. 2023, arXiv:2306.01708"
DARE = "Yu et al. 2023, arXiv:2311.03099"
OURS: Mapping[str, Any] = {"vote": "weighted", "divisor": "weights", "draw": "none"}


def _blend(name: str, title: str, paper: str, shares: blends.Shares, **more: Any) -> Rule:
    """A row whose result is a sum of the updates."""
    return Rule(
        name,
        title,
        paper,
        dense=partial(blends.blend_dense, shares=shares),
        factored=partial(blends.blend_factors, shares=shares),
        linear=True,
        needs_density=False,
        **more,
    )


def _in_dialect(
    name: str, title: str, paper: str, rows: Callable[..., consensus.Rows], *, draws: bool = False, **dialect: Any
) -> Rule:
    """An entrywise row whose dialect is both what it computes with and what the documentation shows."""
    rule = partial(rows, **dialect)
    return Rule(
        name,
        title,
        paper,
        dense=partial(consensus.whole, rule=rule),
        rows=rule,
        draws=draws,
        dialect=MappingProxyType(dialect),
    )


BLENDS = (
    _blend(
        "average", "weighted mean of the updates", "Wortsman et al. 2022, arXiv:2203.05482", blends.averaged, means=True
    ),
    _blend(
        "task_arithmetic",
        "weighted sum of the updates; a negative weight removes a skill",
        "Ilharco et al. 2023, arXiv:2212.04089",
        blends.summed,
    ),
    _blend(
        "slerp",
        "between two updates along their great circle, by weight",
        "Shoemake 1985, doi:10.1145/325165.325242",
        blends.slerp,
        keeps_one=False,
        means=True,
        parents=2,
    ),
    _blend(
        "model_stock",
        "mean, shortened to what trainings of one task have in common",
        "Jang et al. 2024, arXiv:2403.19522",
        blends.model_stock,
        means=True,
    ),
)
ENTRYWISE = (
    _in_dialect(
        "ties",
        "trim each tensor, elect signs by weight, weighted mean of those that agree",
        TIES,
        consensus.ties,
        kept="ceil",
        over="tensor",
        **OURS,
    ),
    _in_dialect(
        "magnitude_prune", "weighted sum of each tensor's largest entries", TIES, consensus.magnitude_prune, kept="ceil"
    ),
    _in_dialect(
        "breadcrumbs",
        "weighted sum of each tensor's large entries without the largest",
        "Davari and Belilovsky 2023, arXiv:2312.06795",
        consensus.breadcrumbs,
        kept="ceil",
        outliers=0.01,
    ),
    _in_dialect("dare", "weighted sum of randomly dropped, rescaled updates", DARE, consensus.dare, draws=True),
    _in_dialect(
        "dare_ties",
        "DARE's drop in place of the trim, then elect and agree",
        DARE,
        consensus.dare_ties,
        draws=True,
        **OURS,
    ),
    _in_dialect(
        "della",
        "dropped with a chance that falls with the rank in its row, then elect and agree",
        "Deep et al. 2024, arXiv:2406.11617",
        consensus.della,
        draws=True,
        spread=0.15,
        **OURS,
    ),
)
DIALECTS = (
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
        "ties_mergekit",
        "TIES as mergekit does it",
        TIES,
        consensus.ties,
        kept="floor_or_one",
        over="tensor",
        vote="weighted",
        divisor="signed_weights",
        draw="plus",
    ),
)
SPECTRA = (
    Rule(
        "iso_c",
        "weighted sum with all singular values set to their mean",
        "Marczak et al. 2025, arXiv:2502.04959",
        dense=spectra.iso_dense,
        factored=spectra.iso_factors,
        needs_density=False,
        keeps_one=False,
    ),
    Rule(
        "tsv",
        "singular values of all parents on singular vectors made orthogonal together",
        "Gargiulo et al. 2025, arXiv:2412.00081",
        dense=spectra.tsv_dense,
        factored=spectra.tsv_factors,
        needs_density=False,
    ),
)


def _aligned() -> Iterator[Rule]:
    """Each entrywise rule in each shared space; a linear one gains nothing there."""
    knots, core = "Stoica et al. 2024, arXiv:2410.19735", "Panariello et al. 2025, arXiv:2509.17786"
    for space, paper, where, dense, factored in (
        (
            "knots",
            knots,
            "in the outputs' basis that the parents share",
            alignment.knots_dense,
            alignment.knots_factors,
        ),
        ("core", core, "in the parents' core, outputs and inputs", alignment.core_dense, alignment.core_factors),
    ):
        for row in (row for row in ENTRYWISE if row.name != "dare"):
            inner: Any = row.dense
            dialect = {
                key: value for key, value in row.dialect.items() if key not in OURS and key not in ("over", "kept")
            }
            yield Rule(
                f"{space}_{row.name}",
                f"`{row.name}` {where}",
                paper,
                dense=partial(dense, inner=inner),
                factored=partial(factored, inner=inner),
                draws=row.draws,
                dialect=MappingProxyType(dialect),
            )


RULES: Mapping[str, Rule] = MappingProxyType(
    {row.name: row for row in (*BLENDS, *ENTRYWISE, *DIALECTS, *SPECTRA, *_aligned())}
)


@dataclass(frozen=True)
class MeasuredRule:
    """A rule that also reads rows of every parent's task, and so runs the base; see `regression.py`."""

    name: str
    title: str
    paper: str
    needs_density: bool = False
    trains: bool = False  # for a number of steps


MEASURED: Mapping[str, MeasuredRule] = MappingProxyType(
    {
        "regmean": MeasuredRule(
            "regmean",
            "least squares: answers each task's training rows as its own adapter does",
            "Jin et al. 2023, arXiv:2212.09849",
        ),
        "distilled": MeasuredRule(
            "distilled",
            "`regmean`, then a short training without labels towards each task's own adapter, on training inputs",
            "Hinton et al. 2015, arXiv:1503.02531",
            trains=True,
        ),
    }
)


def reads_density(name: str) -> bool:
    """Whether a rule of either table trims by density."""
    return RULES[name].needs_density if name in RULES else MEASURED[name].needs_density


def trains(name: str) -> bool:
    """Whether a rule takes a number of training steps."""
    return name in MEASURED and MEASURED[name].trains
