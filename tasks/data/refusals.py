"""Why a set as a whole is refused: all reasons at once, then the rows that were kept out."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.data.admission import Admission, shown
from tasks.data.examples import label_column, text_columns
from tasks.data.reading import Rows
from tasks.data.validation import Verdict, conditions_of
from tasks.errors import DataRefused, FactoryError, Problem, SpecRefused
from tasks.specs import SIDES, AdapterSpec, Side

OFFENDERS_NAMED = 100


def refuse_open_set(spec: AdapterSpec) -> None:
    """Refuse a closed set of labels that no column must lie in.

    Raises:
        SpecRefused: if that is so.
    """
    if spec.data.labels and label_column(spec) is None:
        wrong = "a closed set without a column that must lie in it"
        raise SpecRefused.one("E-SPEC-037", "data.labels", wrong, "name it as data.label_column")


def refuse_empty(rows: Rows) -> None:
    """Refuse a source without rows, which every rule on rows would pass.

    Raises:
        DataRefused: if there is no row.
    """
    if not rows.rows_in:
        raise DataRefused.one("E-DATA-005", rows.source, "it has no rows", "add rows, one example each")


def refuse_miscount(admission: Admission) -> None:
    """Rows in = accepted + quarantined + deduplicated, or the door itself is broken.

    Raises:
        FactoryError: a bug, exit code 70.
    """
    counted = admission.accepted + len(admission.quarantined) + admission.deduplicated
    if counted != admission.rows_in:
        wrong = f"{admission.rows_in} rows came in and {counted} are accounted for"
        raise FactoryError.one("E-DATA-099", admission.source, wrong, "report this: it is a bug of the factory")


def refuse_untrusted(spec: AdapterSpec, rows: Rows, said: Sequence[Verdict], admission: Admission) -> None:
    """Refuse the set if a rule on it failed or did not run, too many rows are bad, or a side or class is missing.

    Raises:
        DataRefused: with every reason, then the first rows that were kept out.
    """
    source = rows.source
    problems = [_problem_of(verdict, source) for verdict in said if _refuses(verdict, spec)]
    problems += _problems_of_counts(spec, admission)
    if problems:
        bad = admission.quarantined[:OFFENDERS_NAMED]
        raise DataRefused(*problems, *(row.problem(rows.where(row.file, row.row, row.field)) for row in bad))


def too_many_bad(spec: AdapterSpec, source: str, bad: int, rows_in: int) -> Problem | None:
    """The problem of a set of which more rows are bad than the spec allows."""
    most = spec.data.max_quarantined
    if bad <= most * rows_in:
        return None
    wrong = f"{bad:,} of {rows_in:,} rows are bad ({bad / rows_in:.1%}), above {most:.1%}"
    return Problem("E-DATA-006", source, wrong, "mend these rows, or raise data.max_quarantined")


def _problems_of_counts(spec: AdapterSpec, admission: Admission) -> list[Problem]:
    """Rows that are sound and only kept out (frozen test rows, near leaks, long ones if asked) do not count as bad."""
    data, source, problems = spec.data, admission.source, []
    sound = {
        "frozen_rows_only_test",
        "no_near_leak",
        *(("example_fits_max_tokens",) if data.overlong == "drop" else ()),
    }
    bad = sum(row.guard not in sound for row in admission.quarantined)
    overlong = sum(row.guard == "example_fits_max_tokens" for row in admission.quarantined)
    if overlong and data.overlong == "refuse":
        wrong = f"{overlong:,} of {admission.rows_in:,} rows are longer than {data.max_tokens:,} tokens"
        remedy = "raise data.max_tokens, or set data.overlong: drop or truncate"
        problems.append(Problem("E-DATA-030", source, wrong, remedy))
    for check in (*admission.checks, *admission.around.notices):
        if check.passed or check.severity != "critical":
            continue
        if check.name == "every_class_has_enough_train_rows":
            few = ", ".join(check.samples)
            wrong = f"{check.unexpected} classes have fewer than {data.min_class_rows} train rows: {few}"
            remedy = "add rows of them, or lower data.min_class_rows"
            problems.append(Problem("E-DATA-029", f"{source}:{check.column}", wrong, remedy))
        elif check.name in ("no_near_leak", "no_near_frozen_row") and data.near.leaks == "refuse":
            wrong = f"{check.unexpected:,} rows that are learned from nearly repeat one that judges; {check.samples[0]}"
            remedy = "remove them, or set data.near.leaks: quarantine"
            problems.append(Problem("E-DATA-028", source, wrong, remedy))
    if problem := too_many_bad(spec, source, bad, admission.rows_in):
        problems.append(problem)
    if admission.accepted < data.min_rows <= admission.rows_in:
        wrong = f"{admission.accepted:,} rows are accepted, fewer than {data.min_rows:,}"
        problems.append(Problem("E-DATA-007", source, wrong, "add rows, or lower data.min_rows"))
    shares: dict[Side, float] = {"train": 1.0, "validation": data.split.validation, "test": data.split.test}
    empty = [side for side in SIDES if shares[side] > 0 and not admission.examples[side]]
    problems += [
        Problem("E-DATA-008", source, f"the {side} side is empty", "add rows, or change data.split") for side in empty
    ]
    taught = list(admission.label_counts.get("train", {}))
    if spec.kind == "classification" and len(taught) == 1:
        wrong = f"all train rows have the label {shown(taught[0])}"
        problems.append(Problem("E-DATA-022", f"{source}:{data.label}", wrong, "add rows of another class"))
    return problems


def _refuses(verdict: Verdict, spec: AdapterSpec) -> bool:
    """A rule that raised, of any severity; a critical one that saw no value, or that no row answers for."""
    if not verdict.error:
        return verdict.severity == "critical" and not verdict.passed and not verdict.offenders
    if verdict.evaluated:
        return True
    # a required column without a value is null in every row, and each is quarantined for that already
    return verdict.severity == "critical" and verdict.column not in text_columns(spec)


def _problem_of(verdict: Verdict, source: str) -> Problem:
    where = ":".join(part for part in (source, verdict.column) if part)
    if verdict.error:
        wrong = f"{verdict.rule} could not run: {verdict.error}"
        return Problem("E-DATA-010", where, wrong, "mend the rule; a check that did not run is no pass")
    wrong = f"{verdict.rule} failed: {conditions_of(verdict) or 'see the rule'}"
    return Problem("E-DATA-009", where, wrong, "mend the data, or relax the rule")
