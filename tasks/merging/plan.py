"""Which adapters are merged, and whether they fit together: every mismatch is listed before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from tasks.errors import ArtifactRefused, Problem, SpecRefused, raise_if_any
from tasks.merging.base import BaseWeights
from tasks.merging.vectors import Update, exact_updates


@dataclass(frozen=True)
class Parent:
    """One adapter that takes part.

    Attributes:
        ref: how people call it ("triage:3"); task: what it serves; folder: its PEFT folder.
        base_digest: content of the base it was trained on. `tokenizer_digest` and `quantization` must agree too; left
            empty, they are taken to be part of the base.
    """

    ref: str
    task: str
    folder: Path
    base_digest: str
    weight: float = 1.0
    tokenizer_digest: str = ""
    quantization: str = ""


@dataclass(frozen=True)
class MergePlan:
    """Parents that fit together, and what they change.

    Attributes:
        modules: every name that a parent changes, with (out, in).
        transposed: the base stores the weights as (in, out).
    """

    parents: tuple[Parent, ...]
    updates: tuple[Update, ...] = field(repr=False)
    modules: Mapping[str, tuple[int, int]] = field(repr=False)
    kind: str
    transposed: bool

    @cached_property
    def vectors(self) -> frozenset[str]:
        """The changed biases and gains, which the base stores with one axis."""
        return frozenset().union(*(update.vectors for update in self.updates))

    @property
    def heads(self) -> dict[str, dict[str, Tensor]]:
        """Task to its own head; heads are not merged."""
        return {
            parent.task: dict(update.head)
            for parent, update in zip(self.parents, self.updates, strict=True)
            if update.head
        }


def check_parents(parents: Sequence[Parent], base: BaseWeights | None = None) -> MergePlan:
    """Read the adapters and refuse what does not fit together; nothing is merged yet.

    Args:
        base: the weights that the adapters were trained on; needed for DoRA, and to check names and shapes against.

    Raises:
        SpecRefused: there are no parents, or a task or reference is named twice.
        ArtifactRefused: with all mismatches of all parents.
    """
    _refuse_ill_named(parents)
    problems: list[Problem] = []
    read: list[tuple[Parent, Update]] = []
    for parent in parents:
        try:
            update = exact_updates(parent.folder, base.weight if base else None, base.shape if base else None)
        except ArtifactRefused as refusal:
            problems += refusal.problems
        else:
            read.append((parent, update))
    problems += _mismatches(parents, "E-MERGE-011", "base", lambda parent: parent.base_digest[:12])
    problems += _mismatches(parents, "E-MERGE-012", "tokenizer", lambda parent: parent.tokenizer_digest[:12])
    problems += _mismatches(parents, "E-MERGE-013", "quantisation", lambda parent: parent.quantization)
    kinds = {parent.ref: update.kind for parent, update in read}
    problems += _mismatches([parent for parent, _ in read], "E-MERGE-014", "kind", lambda parent: kinds[parent.ref])
    problems += _shape_problems(read)
    for parent, update in read:
        if update.head and update.kind == "generation":
            wrong = f"{parent.ref} replaces {', '.join(sorted(update.head))}; replaced weights cannot be merged"
            problems.append(Problem("E-MERGE-016", str(parent.folder), wrong, "train without modules_to_save"))
        if update.kind == "classification" and not update.head:
            wrong = f"{parent.ref} has no head of its own"
            problems.append(Problem("E-MERGE-017", str(parent.folder), wrong, "train the head with the adapter"))
    raise_if_any(ArtifactRefused, problems)
    modules = {name: update.shape(name) for _, update in read for name in update.modules}
    return MergePlan(
        tuple(parent for parent, _ in read),
        tuple(update for _, update in read),
        dict(sorted(modules.items())),
        read[0][1].kind,
        read[0][1].transposed,
    )


def _refuse_ill_named(parents: Sequence[Parent]) -> None:
    problems = [] if parents else [Problem("E-MERGE-006", "parents", "there are none", "name at least one adapter")]
    for attribute in ("ref", "task"):
        names = [getattr(parent, attribute) for parent in parents]
        for name in sorted({name for name in names if names.count(name) > 1}):
            wrong = f"two parents have the {attribute} '{name}'"
            problems.append(Problem("E-MERGE-006", "parents", wrong, "name each once, and weight it"))
    raise_if_any(SpecRefused, problems)


def _mismatches(parents: Sequence[Parent], code: str, what: str, value: Callable[[Parent], str]) -> list[Problem]:
    """One problem per parent that differs from the most common value."""
    values = [value(parent) for parent in parents]
    if len(set(values)) <= 1:
        return []
    usual = max(sorted(set(values)), key=values.count)
    others = ", ".join(parent.ref for parent, own in zip(parents, values, strict=True) if own == usual)
    remedy = "merge adapters of one base, or leave this one out"
    return [
        Problem(code, parent.ref, f"{what} is {own or 'unknown'}, that of {others} is {usual or 'unknown'}", remedy)
        for parent, own in zip(parents, values, strict=True)
        if own != usual
    ]


def _shape_problems(read: Sequence[tuple[Parent, Update]]) -> list[Problem]:
    """Modules that two parents change in different shapes or layouts."""
    found = []
    first: dict[str, tuple[Parent, tuple[int, int]]] = {}
    for parent, update in read:
        if update.transposed != read[0][1].transposed:
            wrong = f"fan_in_fan_out differs from {read[0][0].ref}"
            found.append(Problem("E-MERGE-015", parent.ref, wrong, "merge adapters of one base"))
        for name in update.modules:
            other, shape = first.setdefault(name, (parent, update.shape(name)))
            if shape != update.shape(name):
                wrong = f"changes {name} as {update.shape(name)}, {other.ref} as {shape}"
                found.append(Problem("E-MERGE-015", parent.ref, wrong, "merge adapters of one base"))
    return found
