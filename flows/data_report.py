"""What a person sees of a data set: what came in and what became of it, its shape, its offenders, its near pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flows.report import Figure, Section, Share, Table
from tasks.specs import SIDES

if TYPE_CHECKING:
    from flows.validate import Dataset
    from tasks.data.admission import Check
    from tasks.data.snapshot import Snapshot

SHOWN_ROWS = 50
SHOWN_PAIRS = 25
SHOWN_CHARACTERS = 160
SHOWN_IN_CHECKS = 80  # two of its columns hold text
HIDDEN = "(text left out)"


def data_section(data: Dataset, redact: bool = False) -> Section:
    """One section on a snapshot, complete in itself; with `redact` no text of any row is in it."""
    record, snapshot = data.record, data.snapshot
    sentences = (
        f"{record.rows_in:,} rows of {record.source} = {sum(record.counts.values()):,} accepted"
        f" + {record.quarantined:,} quarantined + {record.deduplicated:,} deduplicated.",
        f"Snapshot {record.digest[:12]} of the bytes with SHA-256 {record.source_digest[:12]}.",
        *_done(data),
    )
    total = sum(record.counts.values())
    sides = tuple((side, rows, Share(rows / total) if total else None) for side, rows in record.counts.items())
    sections = [_shape(data), _checks(data, redact), _quarantine(snapshot, redact), _pairs(snapshot, redact)]
    return Section(
        f"Data of {record.task}",
        sentences,
        (Table("Accepted rows", ("side", "rows", "share"), sides),),
        sections=tuple(section for section in sections if section.tables or section.figures),
    )


def _done(data: Dataset) -> list[str]:
    """What was done to rows beside taking them or leaving them."""
    done, snapshot = [], data.snapshot
    if snapshot.filtered:
        done.append(f"{snapshot.filtered:,} rows did not meet data.where and were not counted.")
    if snapshot.truncated:
        done.append(f"{snapshot.truncated:,} inputs were cut at their end to fit data.max_tokens, as the spec asks.")
    warned = [check for check in _all_checks(data) if check.severity == "warning" and not check.passed]
    if warned:
        done.append(f"{len(warned)} warnings: {', '.join(check.name.replace('_', ' ') for check in warned)}.")
    return done


def _all_checks(data: Dataset) -> list[Check]:
    return [*data.snapshot.checks, *data.around.notices]


def _shape(data: Dataset) -> Section:
    """Lengths, classes, scripts, languages."""
    from tasks.figures.bars import bars

    snapshot = data.snapshot
    shapes = dict(snapshot.histograms) | ({"language, sampled": data.around.languages} if data.around.languages else {})
    figures = [
        Figure(bars(counts, title=f"Accepted rows by {name}"), f"Accepted rows by {name}.")
        for name, counts in ((name, in_order(counts)) for name, counts in shapes.items())
        if len(counts) > 1
    ]
    taught = snapshot.label_counts.get("train", {})
    if taught:
        ordered = dict(sorted(taught.items(), key=lambda item: (-item[1], item[0])))
        figures.append(Figure(bars(ordered, title="Train rows by class"), "Train rows by class, most frequent first."))
    spreads = tuple(
        (side, name.replace("_", " "), spread["median"], spread["p95"], spread["max"])
        for side in SIDES
        for name, spread in snapshot.lengths[side].items()
    )
    table = Table("Lengths", ("side", "of", "median", "95th percentile", "longest"), spreads)
    return Section("Shape", tables=(table,), figures=tuple(figures))


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """Bins by where they begin, other names by how frequent they are: files keep neither order.

    >>> in_order({"10-14": 3, "5-9": 1}), in_order({"Han": 1, "Latin": 9})
    ({'5-9': 1, '10-14': 3}, {'Latin': 9, 'Han': 1})
    """
    begins = {name: name.partition("-")[0] for name in counts}
    if all(begin.isdigit() for begin in begins.values()):
        return dict(sorted(counts.items(), key=lambda item: int(begins[item[0]])))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _checks(data: Dataset, redact: bool) -> Section:
    rows = tuple(
        (
            c.name,
            c.column,
            c.severity,
            c.passed,
            c.evaluated,
            c.unexpected,
            HIDDEN if redact and c.samples else "; ".join(c.samples)[:SHOWN_IN_CHECKS],
            c.detail[:SHOWN_IN_CHECKS],
        )
        for c in sorted(_all_checks(data), key=lambda c: c.passed)
    )
    columns = ("check", "column", "severity", "passed", "evaluated", "unexpected", "such as", "asked and found")
    return Section("Checks", tables=(Table("Checks", columns, rows),))


def _quarantine(snapshot: Snapshot, redact: bool) -> Section:
    if not snapshot.reasons:
        return Section("Quarantine")
    reasons = tuple((line["guard"], line["field"], line["rows"]) for line in snapshot.reasons)
    rows = tuple(
        (bad["file"], bad["row"], bad["field"], HIDDEN if redact else bad["reason"][:SHOWN_CHARACTERS])
        for bad in snapshot.quarantine(SHOWN_ROWS)
    )
    more = snapshot.quarantined - len(rows)
    return Section(
        "Quarantine",
        ("All of them are in quarantine.jsonl of the snapshot, with their records.",),
        (
            Table("Why rows were kept out", ("check", "field", "rows"), reasons),
            Table("First of them", ("file", "row", "field", "reason"), rows, f"and {more:,} more" if more > 0 else ""),
        ),
    )


def _pairs(snapshot: Snapshot, redact: bool) -> Section:
    found: list[tuple[Any, ...]] = []
    for kind in ("leak", "repeat"):
        pairs = [pair for pair in snapshot.near_pairs() if pair["kind"] == kind]
        pairs.sort(key=lambda pair: (pair["same_target"], -pair["similarity"], pair["row"]))
        found += [
            (
                kind,
                f"{pair['side']} row {pair['row']}",
                HIDDEN if redact else pair["input"][:SHOWN_CHARACTERS],
                pair["other"],
                HIDDEN if redact else pair["other_input"][:SHOWN_CHARACTERS],
                pair["similarity"],
                pair["same_target"],
            )
            for pair in pairs[:SHOWN_PAIRS]
        ]
    if not found:
        return Section("Near pairs")
    columns = ("kind", "row", "input", "nearly repeats", "its input", "similarity", "same answer")
    note = (
        "leak: learned from, and nearly a row that judges; repeat: of one side. Those with another answer come first."
    )
    return Section("Near pairs", tables=(Table("Inputs that are nearly the same", columns, tuple(found), note),))
