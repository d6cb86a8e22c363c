"""The one door by which data enters the factory. A set comes in, or all that is wrong with it is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from tasks.data import guards
from tasks.data.admission import Admission, Around, Check, Fallen, Quarantined, shown
from tasks.data.counts import (
    SAMPLES,
    classes,
    classes_are_taught,
    histograms,
    lengths,
    no_secret,
    one_language,
    rows_per_class,
    warnings_of,
)
from tasks.data.examples import input_columns, label_column, target_columns
from tasks.data.guards import CountTokens
from tasks.data.labels import nearest_labels
from tasks.data.layouts import laid_out
from tasks.data.leakage import Placed, settled
from tasks.data.lengths import cut, token_counts
from tasks.data.likeness import likeness
from tasks.data.placing import placed_rows, sided
from tasks.data.reading import Rows, read_rows
from tasks.data.refusals import refuse_empty, refuse_miscount, refuse_open_set, refuse_untrusted
from tasks.data.scripts import languages
from tasks.data.validation import Verdict, conditions_of, longest_text, reason_of, suite_for, verdicts
from tasks.specs import SIDES, AdapterSpec

OnProgress = Callable[[str, int, int], None]
NOTHING: Mapping[str, str] = MappingProxyType({})


def admit(
    spec: AdapterSpec,
    *,
    count_tokens: CountTokens | None = None,
    forbidden: Mapping[str, str] = NOTHING,
    judged: Mapping[str, str] = NOTHING,
    traffic: Mapping[str, str] = NOTHING,
    known: Sequence[Check] = (),
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Admission:
    """The rows of the spec's source that may be learned from, by side; the others with a reason each.

    `count_tokens` gives the length of each text in tokens of the base; without it, only characters are bounded.
    `forbidden` maps keys of frozen test rows to their slice: such a row lies on the test side or stays out. `judged`
    maps their inputs to their slice, for what is nearly the same; `traffic` maps inputs of requests that the task will
    be judged on to where they are. `known` are checks of what is not data, such as the base. `on_progress` hears the
    stage, and how many of how many rows are done.
    One input has one answer where the metric compares answers (exact_match, accuracy); under token_accuracy, where an
    answer is one of many good ones, it may have several.

    Raises:
        SpecRefused: a rule that does not exist, a closed set without its column, a hub id without revision.
        DataRefused: what is missing, or every reason for which the set as a whole cannot be trusted.
        DependencyDown: the hub or the database does not answer.
    """
    refuse_open_set(spec)
    rows = laid_out(spec.data, read_rows(spec.data, partial(on_progress, "reading")))
    refuse_empty(rows)
    suite = suite_for(spec, rows.columns)
    on_progress("expectations", 0, len(rows.records))
    said = verdicts(suite, {name: [record.get(name) for record in rows.records] for name in rows.columns})

    sieve = _Sieve(rows)
    sieve.take(_offenders(spec, rows, said), [_check_of(verdict, rows) for verdict in said])
    sieve.sift("label_is_spelt_as_others", guards.mixed_spelling(spec, rows.records, sieve.standing))
    sieve.sift("side_is_known", guards.unknown_sides(spec, rows.records, sieve.standing))
    sieve.sift("group_is_known", guards.unknown_groups(spec, rows.records, sieve.standing))
    placed = placed_rows(spec, rows, sieve.standing, forbidden, partial(on_progress, "keys and sides"))
    placed = sieve.sift_placed("example_is_visible", placed, guards.invisible(spec, placed))
    placed = sieve.sift_placed("input_is_in_an_allowed_script", placed, guards.foreign_scripts(spec, placed))
    tokens: dict[int, int] = {}
    truncated = 0
    if count_tokens:
        tokens, untold = token_counts(spec, placed, count_tokens, partial(on_progress, "tokens"))
        placed = sieve.sift_placed("target_has_tokens", placed, untold)
        if spec.data.overlong == "truncate":
            over = [row for row in placed if tokens[row.at] > spec.data.max_tokens]
            shorter, counts = cut(spec, over, rows.records, count_tokens)
            examples = [shorter.get(row.at, row.example) for row in placed]
            placed = sided(spec, rows, [row.at for row in placed], examples, forbidden)
            tokens, truncated = tokens | counts, len(shorter)
        placed = sieve.sift_placed("example_fits_max_tokens", placed, guards.too_long(spec, placed, tokens))
    asked, answer = ", ".join(input_columns(spec)), ", ".join(target_columns(spec))
    placed = sieve.sift_placed("frozen_rows_only_test", placed, guards.frozen(placed, forbidden, asked))
    one_target = spec.metric in ("exact_match", "accuracy")
    kept = settled(placed, one_target=one_target, input_field=asked, target_field=answer)
    sieve.sift("one_input_one_target", kept.contradicting)
    sieve.sift("one_side_per_input", kept.leaking)
    alike = likeness(
        kept.rows,
        spec.data.near,
        judged=judged,
        traffic=traffic,
        field=asked,
        template=spec.data.prompt,
        on_progress=partial(on_progress, "near pairs"),
    )
    out = {row.at for row in alike.repeating} if spec.data.near.repeats == "drop" else set()
    sieve.take(alike.leaking if spec.data.near.leaks == "quarantine" else [], alike.checks)
    left = [row for row in kept.rows if row.at not in out and row.at not in sieve.fallen]

    on_progress("counting", 0, len(left))
    per_class, shapes = rows_per_class(spec, rows, left), histograms(left, tokens)
    spoken = languages([row.example.input for row in left])
    around = Around((*known, *alike.notices, *one_language(spoken), no_secret(left)), languages=spoken)
    admission = Admission(
        task=spec.task,
        kind=spec.kind,
        source=rows.source,
        source_digest=rows.digest,
        columns=rows.columns,
        row_unit=rows.unit,
        rows_in=rows.rows_in,
        filtered=rows.filtered,
        examples={side: tuple(row.example for row in left if row.side == side) for side in SIDES},
        quarantined=sieve.quarantined(),
        deduplicated=len(kept.repeated) + len(out),
        checks=(
            *sieve.checks,
            *classes_are_taught(spec, per_class),
            *warnings_of(spec, rows, left, shapes["script"]),
        ),
        suite=suite.to_json_dict(),
        truncated=truncated,
        labels=classes(spec, rows, left),
        label_counts=per_class,
        lengths=lengths(left, tokens),
        histograms=shapes,
        near=alike.pairs,
        around=around,
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
        if fallen:
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
    """Rows that fail a critical rule, in the order of the suite; a text that no tokenizer could fit is too long."""
    column = label_column(spec)
    values = [record.get(column) for record in rows.records] if column and spec.data.labels else []
    wrong = {value for value in values if isinstance(value, str)} - {*spec.data.labels}
    near = nearest_labels(sorted(wrong), spec.data.labels)
    return [
        Fallen(
            at,
            "example_fits_max_tokens" if longest_text(spec, verdict) else verdict.rule,
            verdict.column,
            reason_of(verdict, _value(verdict, rows, at), near),
        )
        for verdict in said
        if verdict.severity == "critical" and not verdict.passed
        for at in verdict.offenders or ()
    ]


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
