"""The one door by which data enters the factory. A set comes in, or all that is wrong with it is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tasks.data import guards
from tasks.data.admission import Admission, Check, Fallen, Quarantined, shown
from tasks.data.counts import SAMPLES, classes, lengths, rows_per_class, taught_classes
from tasks.data.examples import example_of, input_columns, label_column, target_columns
from tasks.data.guards import CountTokens
from tasks.data.labels import nearest_labels
from tasks.data.leakage import Placed, settled
from tasks.data.reading import Rows, read_rows
from tasks.data.refusals import refuse_empty, refuse_miscount, refuse_open_set, refuse_untrusted
from tasks.data.splits import declared_side, side_in, side_of
from tasks.data.validation import Verdict, conditions_of, reason_of, suite_for, verdicts
from tasks.specs import SIDES, AdapterSpec


def admit(
    spec: AdapterSpec,
    *,
    count_tokens: CountTokens | None = None,
    forbidden: Mapping[str, str] = MappingProxyType({}),
) -> Admission:
    """The rows of the spec's source that may be learned from, by side; the others with a reason each.

    `count_tokens` gives the length of each text in tokens of the base; without it, only characters are bounded.
    `forbidden` maps keys of frozen test rows to their slice: such a row lies on the test side or stays out.
    One input has one answer where the metric compares answers (exact_match, accuracy); under token_accuracy, where an
    answer is one of many good ones, it may have several.

    Raises:
        SpecRefused: a rule that does not exist, a closed set without its column, a hub id without revision.
        DataRefused: what is missing, or every reason for which the set as a whole cannot be trusted.
        DependencyDown: the hub does not answer.
    """
    refuse_open_set(spec)
    rows = read_rows(spec.data)
    refuse_empty(rows)
    suite = suite_for(spec, rows.columns)
    said = verdicts(suite, {name: [record.get(name) for record in rows.records] for name in rows.columns})

    sieve = _Sieve(rows)
    sieve.take(_offenders(spec, rows, said), [_check_of(verdict, rows) for verdict in said])
    sieve.sift("label_is_spelt_as_others", guards.mixed_spelling(spec, rows.records, sieve.standing))
    sieve.sift("side_is_known", guards.unknown_sides(spec, rows.records, sieve.standing))
    placed = _placed(spec, rows, sieve.standing)
    placed = sieve.sift_placed("example_is_visible", placed, guards.invisible(spec, placed))
    tokens = guards.token_counts(spec, placed, count_tokens) if count_tokens else {}
    if count_tokens:
        placed = sieve.sift_placed("example_fits_max_tokens", placed, guards.too_long(spec, placed, tokens))
    asked, answer = ", ".join(input_columns(spec)), ", ".join(target_columns(spec))
    placed = sieve.sift_placed("frozen_rows_only_test", placed, guards.frozen(placed, forbidden, asked))
    one_target = spec.metric in ("exact_match", "accuracy")
    kept = settled(placed, one_target=one_target, input_field=asked, target_field=answer)
    sieve.sift("one_input_one_target", kept.contradicting)
    sieve.sift("one_side_per_input", kept.leaking)

    per_class = rows_per_class(spec, rows, kept.rows)
    admission = Admission(
        task=spec.task,
        kind=spec.kind,
        source=rows.source,
        source_digest=rows.digest,
        columns=rows.columns,
        row_unit=rows.unit,
        rows_in=rows.rows_in,
        filtered=rows.filtered,
        examples={side: tuple(row.example for row in kept.rows if row.side == side) for side in SIDES},
        quarantined=sieve.quarantined(),
        deduplicated=len(kept.repeated),
        checks=(*sieve.checks, *taught_classes(spec, per_class)),
        suite=suite.to_json_dict(),
        labels=classes(spec, rows, kept.rows),
        label_counts=per_class,
        lengths=lengths(kept.rows, tokens),
    )
    refuse_miscount(admission)
    refuse_untrusted(spec, rows, said, admission)
    return admission


class _Sieve:
    """Rows that stand, rows that fell, and the checks on the way. The first check that a row fails is its reason."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.standing: list[int] = list(range(len(rows.records)))
        self.fallen: dict[int, Fallen] = {}
        self.checks = [_check("row_is_readable", rows.rows_in, [bad.reason for bad in rows.malformed])]

    def take(self, fallen: Sequence[Fallen], checks: Sequence[Check]) -> None:
        for row in fallen:
            self.fallen.setdefault(row.at, row)
        self.standing = [at for at in self.standing if at not in self.fallen]
        self.checks += checks

    def sift(self, name: str, fallen: Sequence[Fallen]) -> None:
        self.take(fallen, [_check(name, len(self.standing), [row.reason for row in fallen])])

    def sift_placed(self, name: str, placed: Sequence[Placed], fallen: Sequence[Fallen]) -> list[Placed]:
        self.sift(name, fallen)
        return [row for row in placed if row.at not in self.fallen]

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Rows that could not be read and rows that fell, in the order of the source."""
        found = list(self.rows.malformed)
        for at, (_, guard, field, reason) in self.fallen.items():
            file, row = self.rows.places[at]
            found.append(Quarantined(row, field, reason, self.rows.records[at], guard, file))
        return tuple(sorted(found, key=lambda bad: (bad.file, bad.row)))


def _offenders(spec: AdapterSpec, rows: Rows, said: Sequence[Verdict]) -> list[Fallen]:
    """Rows that fail a critical rule, in the order of the suite."""
    column = label_column(spec)
    values = [record.get(column) for record in rows.records] if column and spec.data.labels else []
    wrong = {value for value in values if isinstance(value, str)} - {*spec.data.labels}
    near = nearest_labels(sorted(wrong), spec.data.labels)
    return [
        Fallen(at, verdict.rule, verdict.column, reason_of(verdict, _value(verdict, rows, at), near))
        for verdict in said
        if verdict.severity == "critical" and not verdict.passed
        for at in verdict.offenders or ()
    ]


def _placed(spec: AdapterSpec, rows: Rows, standing: Sequence[int]) -> list[Placed]:
    """The examples of the rows that stand, each on its side."""
    split = spec.data.split
    declared = {at: declared_side(rows.records[at].get(split.column)) for at in standing} if split.column else {}
    has_validation = "validation" in declared.values()
    placed = []
    for at in standing:
        file, row = rows.places[at]
        example = example_of(spec, rows.records[at], row, file)
        named = declared.get(at)
        side = side_in(named, example.key, split, has_validation) if named else side_of(example.key, split)
        placed.append(Placed(example, side, at))
    return placed


def _check_of(verdict: Verdict, rows: Rows) -> Check:
    return Check(
        name=verdict.rule,
        column=verdict.column,
        severity=verdict.severity,
        passed=verdict.passed,
        evaluated=verdict.evaluated,
        unexpected=verdict.unexpected,
        samples=tuple(shown(_value(verdict, rows, at)) for at in (verdict.offenders or ())[:SAMPLES]),
        detail=f"could not run: {verdict.error}" if verdict.error else conditions_of(verdict),
    )


def _check(name: str, evaluated: int, reasons: Sequence[str]) -> Check:
    return Check(name, "", "critical", not reasons, evaluated, len(reasons), tuple(reasons[:SAMPLES]))


def _value(verdict: Verdict, rows: Rows, at: int) -> object:
    values = tuple(rows.records[at].get(name) for name in verdict.columns)
    return values[0] if len(values) == 1 else values
