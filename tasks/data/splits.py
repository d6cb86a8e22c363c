"""Which side a row lies on: by what its data set says, else by the hash of its input.

The hash takes no seed, so a row never changes side when data grows or a run is repeated, and equal inputs lie on one
side. Test rows are cut from the low end and validation rows from the high end: a larger share only draws from train.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tasks.specs import Side, SplitSpec

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
