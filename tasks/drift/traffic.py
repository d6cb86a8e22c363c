"""Traffic in: rows of JSONL, CSV or Parquet, one at a time, each accepted or set aside with its reason.

rows in = accepted + set aside + repeated + waiting. Order does not matter; a row that comes again under its id counts
once, and may bring a value that was still missing (a label that became known late).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from tasks.drift.traffic_files import Record, Unreadable, in_one_line, is_text, records

LONGEST_VALUE = 1_000_000
LOOKED_AT = 20  # times the rows of a window: how far back a window looks where one sender fills the newest rows
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
SKEW = timedelta(days=1)


@dataclass(frozen=True)
class TrafficRow:
    """One request that was served. `columns` holds the other values as text; what was blank or null is absent. `time`
    is None for a row that only brings the label of a request."""

    id: str
    time: datetime | None
    source: str
    columns: dict[str, str]


@dataclass(frozen=True)
class SetAside:
    """A row that was not taken: its number (the line of the file, or the row of a Parquet file), and why.

    `time` is its own where that can be read, else that of the row before it in the file, or of the reading for the
    first ones. `id` is "" where it cannot be read, or where another row of that id is contradicted.
    """

    row: int
    field: str
    reason: str
    time: datetime | None = None
    id: str = ""


@dataclass(frozen=True)
class Traffic:
    """`late` of the `repeated` rows brought a value that was still missing. `labels` rows only brought the label of a
    request, which did not come for `waiting` ids."""

    rows: tuple[TrafficRow, ...]
    set_aside: tuple[SetAside, ...]
    repeated: int
    late: int
    labels: int = 0
    waiting: int = 0

    @property
    def rows_in(self) -> int:
        return len(self.rows) + len(self.set_aside) + self.repeated + self.waiting

    def malformed(self, since: datetime | None) -> int:
        """How many of the rows that came since then were set aside; not one whose id came in a row that was taken."""
        known = {row.id for row in self.rows}
        return sum(
            one.id not in known and (since is None or one.time is None or one.time >= since) for one in self.set_aside
        )


class _Refused(ValueError):
    """(field, reason) of a value that spoils its row."""


def read_traffic(path: Path, *, inputs: Sequence[str], now: datetime, truth: Sequence[str] = ()) -> Traffic:
    """All requests of a file, in the order in which they came, with labels that stand in rows of their own.

    A row needs `id`, `time` (ISO 8601, read as UTC where it names no zone, or seconds since 1970) and the columns named
    in `inputs` (which may be empty text); `source` is "" where it is absent. Times before 2000 or more than a day after
    `now` are set aside, and so is a second row of one id that says otherwise than the first.

    Raises:
        DataRefused: if the file is missing, of another kind, not readable at all, lacks a needed column altogether, or
            has a nested one.
    """
    first: dict[str, TrafficRow] = {}
    aside: list[SetAside] = []
    repeated = late = labels = 0
    for found in traffic_rows(path, inputs=inputs, now=now, truth=truth):
        if isinstance(found, SetAside):
            aside.append(found)
            continue
        number, row = found
        labels += row.time is None
        known = first.get(row.id)
        if known is None:
            first[row.id] = row
            continue
        clash = _clash(known, row)
        if clash:
            reason = f"id '{row.id}' came before with another {clash}"
            aside.append(SetAside(number, clash, reason, row.time or known.time))
            continue
        repeated += 1
        columns = {**known.columns, **row.columns}
        first[row.id] = TrafficRow(row.id, known.time or row.time, known.source or row.source, columns)
        late += first[row.id] != known
    rows = tuple(row for row in first.values() if row.time is not None)
    return Traffic(rows, tuple(aside), repeated, late, labels, len(first) - len(rows))


def _clash(known: TrafficRow, row: TrafficRow) -> str:
    """The first field in which two rows of one id contradict each other; empty if none does."""
    if other := [name for name, value in row.columns.items() if known.columns.get(name, value) != value]:
        return other[0]
    if known.time and row.time and known.time != row.time:
        return "time"
    return "source" if known.source and row.source and known.source != row.source else ""


def traffic_rows(
    path: Path, *, inputs: Sequence[str], now: datetime, truth: Sequence[str] = ()
) -> Iterator[tuple[int, TrafficRow] | SetAside]:
    """The rows of a file one after another, with their numbers, repeats included: memory does not grow with the file.

    A row of a JSONL file that has an id and one of the columns `truth`, but no time and none of `inputs`, is the label
    of a request that came before or is still to come.

    Raises:
        DataRefused: as `read_traffic`.
    """
    before: datetime | None = None
    for number, record in records(path, needed=("id", "time", *inputs)):
        try:
            if isinstance(record, Unreadable):
                raise _Refused("", record.reason)
            row = _row(record, inputs, now, truth)
        except _Refused as refusal:
            field, reason = refusal.args
            name, own = _who_and_when(record, now)
            yield SetAside(number, in_one_line(field, 80), reason, own or before or now, name)
        else:
            before = row.time or before
            yield number, row


def newest(rows: Iterable[TrafficRow], count: int, *, per_source: int | None = None) -> tuple[TrafficRow, ...]:
    """The `count` latest rows, oldest first, at most `per_source` of one sender where several occur among the twenty
    times `count` latest, so that none of them can fill a window alone; it looks no further back.

    >>> day = [datetime(2026, 1, n, tzinfo=UTC) for n in range(1, 5)]
    >>> rows = [TrafficRow(str(n), day[n], "ab"[n == 0], {}) for n in (2, 0, 3, 1)]
    >>> [row.id for row in newest(rows, 3)], [row.id for row in newest(rows, 3, per_source=2)]
    (['1', '2', '3'], ['0', '2', '3'])
    """
    taken: list[TrafficRow] = []
    sent: Counter[str] = Counter()
    known = sorted(((row.time, row.id, row) for row in rows if row.time), key=lambda row: row[:2], reverse=True)
    known = known[: LOOKED_AT * count]
    if len({row.source for _, _, row in known}) < 2:
        per_source = None
    for _, _, row in known:
        if len(taken) == count:
            break
        if per_source is None or sent[row.source] < per_source:
            sent[row.source] += 1
            taken.append(row)
    return tuple(reversed(taken))


def _row(record: dict[str, Any], inputs: Sequence[str], now: datetime, truth: Sequence[str]) -> TrafficRow:
    if not all(is_text(str(name)) for name in record):
        raise _Refused("", "the name of a column is not valid UTF-8 or holds NUL")
    values = {str(name): _text(str(name), value) for name, value in record.items()}
    only_label = all(values.get(name) is None for name in (*inputs, "time")) and any(values.get(t) for t in truth)
    for name in () if only_label else inputs:
        if values.get(name) is None:
            raise _Refused(name, "missing")
    name = (values.get("id") or "").strip()
    if not name:
        raise _Refused("id", "missing")
    reserved = {"id", "time", "source"}
    kept = {key: value for key, value in values.items() if value is not None and key not in reserved}
    columns = {key: value for key, value in kept.items() if value.strip() or key in inputs}
    time = None if only_label else _time(values.get("time"), now)
    return TrafficRow(name, time, (values.get("source") or "").strip(), columns)


def _who_and_when(record: Record, now: datetime) -> tuple[str, datetime | None]:
    """What can be read of the id and the time of a row that is set aside."""
    name, time = "", None
    if not isinstance(record, Unreadable):
        with suppress(_Refused):
            name = (_text("id", record.get("id")) or "").strip()
        with suppress(_Refused):
            time = _time(_text("time", record.get("time")), now)
    return name, time


def _text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise _Refused(name, f"{value} is not a number")
    if isinstance(value, date):
        return value.isoformat()
    if not isinstance(value, str | int | float):
        raise _Refused(name, f"a plain value is expected, found {type(value).__name__}")
    text = str(value)
    if len(text) > LONGEST_VALUE:
        raise _Refused(name, f"{len(text):,} characters, at most {LONGEST_VALUE:,} are read")
    if not is_text(text):
        raise _Refused(name, "not valid UTF-8" if "\0" not in text else "a NUL character is in it")
    return text


def _time(text: str | None, now: datetime) -> datetime:
    if text is None or not text.strip():
        raise _Refused("time", "missing")
    try:
        time = _instant(text.strip())
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise _Refused("time", f"'{in_one_line(text)}' is neither ISO 8601 nor seconds since 1970") from None
    if not EARLIEST <= time <= now + SKEW:
        raise _Refused("time", f"{time.isoformat()} is not between {EARLIEST.date()} and a day after now")
    return time


def _instant(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(float(text), UTC)
