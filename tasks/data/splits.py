"""Which side a row lies on: by what its data set says, by group, by time, else by the hash of its input.

The hash takes no seed, so a row never changes side when data grows or a run is repeated, and equal inputs lie on one
side. Test rows are cut from the low end and validation rows from the high end: a larger share only draws from train.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from types import MappingProxyType

from tasks.specs import Side, SplitSpec, moment_of

DECLARED: Mapping[str, Side] = MappingProxyType(
    {
        "train": "train",
        "validation": "validation",
        "valid": "validation",
        "val": "validation",
        "dev": "validation",
        "test": "test",
    }
)
STRATIFIED_ROWS = 3  # a class of fewer cannot lie on three sides


def position(key: str) -> float:
    """Where a key lies in [0, 1), evenly: the first 13 hex digits, which a float holds exactly.

    >>> position("8" + "0" * 63)
    0.5
    """
    return int(key[:13], 16) / 16**13


def side_of(key: str, split: SplitSpec) -> Side:
    """Side of an input by its key alone.

    >>> side_of("0" * 64, SplitSpec()), side_of("8" * 64, SplitSpec()), side_of("f" * 64, SplitSpec())
    ('test', 'train', 'validation')
    """
    at = position(key)
    if at < split.test:
        return "test"
    return "validation" if at >= 1 - split.validation else "train"


def declared_side(value: object) -> Side | None:
    """Side that a data set names in a column, in any case; None if it is no known name.

    >>> declared_side("Valid"), declared_side("dev "), declared_side("holdout"), declared_side(3)
    ('validation', 'validation', None, None)
    """
    return DECLARED.get(value.strip().lower()) if isinstance(value, str) else None


def side_in(declared: Side, key: str, split: SplitSpec, has_validation: bool) -> Side:
    """The declared side; where no row is declared validation, that share of train is cut by hash."""
    if declared == "train" and not has_validation and position(key) >= 1 - split.validation:
        return "validation"
    return declared


def time_of(value: object) -> datetime | None:
    """A moment from ISO 8601 text, a date or a time; None if it is neither. Without a zone it is UTC.

    >>> time_of("2026-03-01").isoformat(), time_of("soon"), time_of(None)
    ('2026-03-01T00:00:00+00:00', None, None)
    """
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    try:
        return moment_of(value.strip()) if isinstance(value, str) else None
    except ValueError:
        return None


def side_at(moment: datetime, split: SplitSpec) -> Side:
    """Side of a moment between the fixed cuts of the spec.

    >>> cut = SplitSpec(time="day", validation_from="2026-01-01", test_from="2026-03-01")
    >>> [side_at(time_of(day), cut) for day in ("2025-12-31", "2026-01-01", "2026-03-01")]
    ['train', 'validation', 'test']
    """
    if split.test_from is not None and moment >= moment_of(split.test_from):
        return "test"
    if split.validation_from is not None and moment >= moment_of(split.validation_from):
        return "validation"
    return "train"


def stratified(rows: Iterable[tuple[str, str, Side]], split: SplitSpec, frozen: Mapping[str, str]) -> dict[str, Side]:
    """Keys that change side so that every class lies on every side: (key, class, side by hash) -> side.

    A class without a test row gives the row that lies nearest to the test end of the hash, one without a validation row
    that nearest to the other end. A row that has judged before (`frozen`) judges again, whatever the hash says.
    """
    moved: dict[str, Side] = {}
    by_class: dict[str, dict[str, Side]] = {}
    for key, name, side in rows:
        by_class.setdefault(name, {})[key] = side
        if key in frozen and side != "test":
            moved[key] = by_class[name][key] = "test"
    for sides in by_class.values():
        if len(sides) < STRATIFIED_ROWS:
            continue
        for side, share, first in (("test", split.test, min), ("validation", split.validation, max)):
            taught = [key for key, now in sides.items() if now == "train"]
            if share > 0 and side not in sides.values() and len(taught) > 1:
                key = first(taught, key=position)
                moved[key] = sides[key] = side
    return moved
