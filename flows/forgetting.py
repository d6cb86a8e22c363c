"""What each version still knows: every version of a task on every frozen slice, from the ledger; and class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from flows.promote import scores_on_tests
from flows.report import Figure, Section, Table
from flows.validate import remembered_dataset
from flows.wiring import Home
from registry.records import EvaluationRecord, dataset_ref
from tasks.evaluation.comparison import gain

if TYPE_CHECKING:
    from flows.retrain import RetrainOutcome

LEAST_ROWS = 5
SHOWN_CLASSES = 12


class Matrix(NamedTuple):
    """Scores (versions, slices), None where a version was never asked; both in the order in which they came."""

    versions: tuple[str, ...]
    slices: tuple[str, ...]
    scores: tuple[tuple[float | None, ...], ...]


class Change(NamedTuple):
    """One class on one slice: how many rows, both scores, and the bounds of the change (one-sided, 95 %)."""

    slice: str
    target: str
    n: int
    before: float
    after: float
    low: float
    high: float


def matrix_of(home: Home, task: str, metric: str, *, also: Mapping[str, Mapping[str, float]] | None = None) -> Matrix:
    """Every version of a task on every slice that any of them was judged on.

    `also` maps a version that is not registered yet to its scores by the data's digest.
    """
    found: dict[str, dict[str, float]] = {}
    for version in home.ledger.versions(task) if task in home.ledger.names() else ():
        found[version.ref] = {data: e.score for data, e in scores_on_tests(home, version.ref, metric).items()}
    found |= {name: dict(scores) for name, scores in (also or {}).items()}
    found = {name: scores for name, scores in found.items() if scores}
    slices = tuple(dict.fromkeys(data for scores in found.values() for data in scores))
    table = tuple(tuple(scores.get(data) for data in slices) for scores in found.values())
    return Matrix(tuple(found), tuple(dataset_ref(data) for data in slices), table)


def drawn(matrix: Matrix, margin: float) -> bytes:
    """The matrix as a heat map."""
    from tasks.figures.forgetting import forgetting_matrix

    short = [name.removeprefix("dataset:")[:8] for name in matrix.slices]
    return forgetting_matrix(
        matrix.versions,
        [f"test of {name}" for name in short],
        matrix.scores,
        margin=margin,
        title="What is still known",
    )


def by_class(name: str, targets: Mapping[str, str], before: EvaluationRecord, after: EvaluationRecord) -> list[Change]:
    """The change of every class that has enough rows, the worst first. `targets` maps keys of rows to their class."""
    was = dict(zip(before.keys, before.outcomes, strict=True))
    rows: dict[str, list[tuple[float, float]]] = {}
    for key, outcome in zip(after.keys, after.outcomes, strict=True):
        if key in was and key in targets:
            rows.setdefault(targets[key], []).append((was[key], outcome))
    found = []
    for target, pairs in rows.items():
        if len(pairs) >= LEAST_ROWS:
            old, new = [then for then, _ in pairs], [now for _, now in pairs]
            change = gain(new, old)
            mean = sum(old) / len(old)
            found.append(Change(name, target.strip(), len(pairs), mean, mean + change.mean, change.low, change.high))
    return sorted(found, key=lambda one: (one.after - one.before, one.target))


def forgetting_section(home: Home, outcome: RetrainOutcome, margin: float) -> Section:
    """All versions on all slices, and the classes that the candidate lost most of."""
    metric = outcome.scores["candidate"][outcome.fresh].metric
    matrix = matrix_of(home, outcome.version.name, metric)
    columns = ("version", *matrix.slices)
    rows = tuple((version, *scores) for version, scores in zip(matrix.versions, matrix.scores, strict=True))
    table = Table("Every version on every slice", columns, rows)
    lost = [change for change in class_changes(home, outcome) if change.after < change.before][:SHOWN_CLASSES]
    classes = Table("Classes that lost most", Change._fields, tuple(lost), "one-sided 95 % bounds of the change")
    caption = "Score per slice, and the change against the best earlier version."
    return Section("What is still known", (), (table, classes), (Figure(drawn(matrix, margin), caption),))


def class_changes(home: Home, outcome: RetrainOutcome) -> Sequence[Change]:
    """Candidate against champion, class by class, on every slice but the fresh one."""
    found: list[Change] = []
    for name, after in outcome.scores["candidate"].items():
        if name != outcome.fresh:
            rows = remembered_dataset(home, after.dataset).snapshot.examples("test")
            targets = {row.key: row.target for row in rows}
            if 2 * len(set(targets.values())) <= len(targets):  # classes, not free text
                found += by_class(name, targets, outcome.scores["champion"][name], after)
    return sorted(found, key=lambda one: one.after - one.before)
