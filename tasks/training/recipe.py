"""Values that a spec leaves to us (`rank: auto`), chosen from the data and the model, each with its reason; torch-free.

Rates follow hidden size, not rank (Biderman et al. 2024, arXiv:2405.09673: LoRA wants about ten times the rate of full
fine-tuning; Schulman et al. 2025, "LoRA Without Regret": nearly independent of rank, all linear layers). Dropout and
weight decay fall with the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.memory import Shapes
from tasks.methods.catalogue import METHODS
from tasks.methods.targets import chosen_targets
from tasks.specs import AdapterSpec
from tasks.training.diagnosis import Reach

FULL_RATE, OVER_FULL, HIDDEN_AT_FULL_RATE, FALL = 5e-5, 10.0, 2000, 0.781
HIGHEST_RATE = 7.5e-3  # see `rate_at`
WANTED_STEPS, MOST_EPOCHS = 400, 10


@dataclass(frozen=True)
class Facts:
    """What a choice is made from: rows to learn from, and the base's hidden size and smallest linear dimension."""

    rows: int
    hidden: int
    smallest_dimension: int


def facts_of(shapes: Shapes, rows: int) -> Facts:
    """The facts of a base, from its files' headers."""
    smallest = min((min(shape) for shape in shapes.linear.values()), default=1)
    return Facts(rows, int(shapes.config.get("hidden_size", smallest)), smallest)


def reach_of(spec: AdapterSpec, shapes: Shapes, rows: int) -> Reach:
    """What the adapter of a spec can change, beside the rank that the recipe would choose and all linear layers.

    Raises:
        SpecRefused: the method does not fit the base's modules.
    """
    row, usual = METHODS[spec.method.name], rank_for(spec, facts_of(shapes, rows)).value
    rank = spec.method.rank if row.is_low_rank else usual
    if not row.takes_targets or (spec.method.targets == "all-linear" and spec.method.layers is None):
        return Reach(rank, usual, 1.0)
    sizes = {name: out * into for name, (out, into) in shapes.linear.items()}
    adapted = sum(sizes[name] for name in chosen_targets(shapes.linear, spec.method))
    return Reach(rank, usual, adapted / sum(sizes.values()))


@dataclass(frozen=True)
class Choice:
    """One value and why."""

    value: Any
    reason: str


def with_choices(spec: AdapterSpec, facts: Facts) -> AdapterSpec:
    """The spec with every `auto` field filled; `chosen` says what was chosen and why."""
    reasons: dict[str, str] = {}
    for path in spec.auto:
        section, field = path.split(".")
        choice = CHOOSERS[path](spec, facts)
        spec = spec.model_copy(update={section: getattr(spec, section).model_copy(update={field: choice.value})})
        reasons[path] = f"{choice.value}: {choice.reason}"
    return spec.model_copy(update={"auto": (), "chosen": {**spec.chosen, **reasons}})


def rank_for(spec: AdapterSpec, facts: Facts) -> Choice:
    """8 for a few rows or a head, doubled for every tenfold of rows above a thousand, 64 at most."""
    first = 4 if spec.kind == "classification" else 8
    rank = first * 2 ** max(0, min(3, math.ceil(math.log10(max(facts.rows, 1)) - 3)))
    rank = min(rank, facts.smallest_dimension)
    return Choice(rank, f"{facts.rows:,} rows of {spec.kind}, smallest dimension {facts.smallest_dimension}")


def dropout_for(spec: AdapterSpec, facts: Facts) -> Choice:
    """0.15 to 0.1 below a thousand rows, 0.1 to 0.05 below ten, 0.05 to 0 below a hundred thousand, then 0."""
    value = _falling(facts.rows, (0.15, 0.1, 0.05, 0.0))
    return Choice(value, f"{facts.rows:,} rows; fewer rows ask for more")


def weight_decay_for(spec: AdapterSpec, facts: Facts) -> Choice:
    """0.1 to 0.05 below a thousand rows, 0.05 to 0.01 below ten thousand, then 0.01."""
    value = _falling(facts.rows, (0.1, 0.05, 0.01, 0.01))
    return Choice(value, f"{facts.rows:,} rows; fewer rows ask for more")


def learning_rate_for(spec: AdapterSpec, facts: Facts) -> Choice:
    """As `rate_at` has it."""
    why = f"ten times full fine-tuning at hidden size {facts.hidden}, whatever the rank"
    return Choice(float(f"{rate_at(facts.hidden):.2g}"), why)


def rate_at(hidden: int) -> float:
    """5e-5 * 10 * (2000 / hidden)^0.781, and at most 0.0075: for a base so small that it would be more none was tried.

    Measured on the embedded base (hidden size 256) with everything else left to the recipe too, exact match on test
    rows at one, two and three times the formula: triage (522 steps) 0.996, 0.974 and 0.273, extract (476 steps) 0.996,
    0.992 and 0.985; at half of it triage is as good (1.000, 267 rows). Runs of 60 steps gain from three times it, but
    `epochs_for` asks for several times as many.

    >>> f"{rate_at(2000):.2g} {rate_at(4096):.2g} {rate_at(256):.2g} {rate_at(64):.2g}"
    '0.0005 0.00029 0.0025 0.0074'
    """
    return min(HIGHEST_RATE, FULL_RATE * OVER_FULL * (HIDDEN_AT_FULL_RATE / hidden) ** FALL)


def targets_for(spec: AdapterSpec, facts: Facts) -> Choice:
    return Choice("all-linear", "adapting every linear layer is what closes the gap to full fine-tuning")


def epochs_for(spec: AdapterSpec, facts: Facts) -> Choice:
    """So many that there are four hundred steps; 1 to 10."""
    per_epoch = -(-facts.rows // spec.training.batch_size)
    epochs = max(1, min(MOST_EPOCHS, round(WANTED_STEPS / max(per_epoch, 1))))
    return Choice(float(epochs), f"{per_epoch:,} steps an epoch, about {WANTED_STEPS} are wanted, 1 to {MOST_EPOCHS}")


CHOOSERS: Mapping[str, Callable[[AdapterSpec, Facts], Choice]] = {
    "method.rank": rank_for,
    "method.dropout": dropout_for,
    "method.targets": targets_for,
    "training.weight_decay": weight_decay_for,
    "training.learning_rate": learning_rate_for,
    "training.epochs": epochs_for,
}


def _falling(rows: int, corners: tuple[float, float, float, float]) -> float:
    """The corners stand at 100, 1,000, 10,000 and 100,000 rows; straight lines over the logarithm between them.

    >>> [_falling(rows, (0.15, 0.1, 0.05, 0.0)) for rows in (50, 1_000, 10_000, 10**6)]
    [0.15, 0.1, 0.05, 0.0]
    """
    place = min(max(math.log10(max(rows, 1)) - 2, 0.0), 3.0)
    left = min(int(place), 2)
    value = corners[left] + (corners[left + 1] - corners[left]) * (place - left)
    return round(value, 3)
