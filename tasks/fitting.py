"""What to change in a spec so that its run fits into memory; torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tasks.methods.catalogue import METHODS
from tasks.specs import AdapterSpec
from tasks.specs.adapter import WANT_THE_WHOLE_BASE

FEWEST_TOKENS = 16


def fitting_changes(
    spec: AdapterSpec, tokens: int, fits: Callable[[AdapterSpec], bool]
) -> tuple[Mapping[str, Any], ...]:
    """Every set of changes after which a spec fits and of which none can be left out, such as
    {"training.micro_batch": 4}; the cheapest first.

    A set costs what its dearest change does. From cheap to dear: fewer rows at once at the same effective batch (half
    of them, a quarter, ...), activations computed again, a base that the processes share, a 4-bit base, shorter rows.

    Args:
        tokens: of the longest row.
    """
    choices = _choices(spec, tokens)
    found: list[Mapping[str, Any]] = []
    for number in range(1, 1 << len(choices)):  # a set comes after all of its parts
        places = [place for bit, place in enumerate(choices) if number >> bit & 1]
        if any(way.keys() <= set(places) for way in found):
            continue
        if way := _way(spec, {place: choices[place] for place in places}, fits):
            found.append(way)
    return tuple(found)


def _choices(spec: AdapterSpec, tokens: int) -> dict[str, list[Any]]:
    """What may be changed and to what, the cheapest first."""
    rows = rows_at_once(spec)
    shares = may_share_base(spec) and not spec.resources.shard_base
    packs = spec.base.quantization == "none" and METHODS[spec.method.name].works_on_nf4
    found: dict[str, list[Any]] = {
        "training.micro_batch": [rows >> i for i in range(1, 17) if rows >> i],
        "training.gradient_checkpointing": [] if spec.training.gradient_checkpointing else [True],
        "resources.shard_base": [True] if shares else [],
        "base.quantization": ["nf4"] if packs else [],
        "data.max_tokens": [tokens >> i for i in range(1, 17) if tokens >> i >= FEWEST_TOKENS],
    }
    return {place: values for place, values in found.items() if values}


def _way(
    spec: AdapterSpec, choices: Mapping[str, list[Any]], fits: Callable[[AdapterSpec], bool]
) -> Mapping[str, Any] | None:
    """Of each choice the value that changes least, the dearest chosen first; None where all at their end do not fit."""
    way = {place: values[-1] for place, values in choices.items()}
    if not fits(changed(spec, way)):
        return None
    for place in reversed(way):
        way[place] = next(value for value in choices[place] if fits(changed(spec, {**way, place: value})))
    return way


def changed(spec: AdapterSpec, changes: Mapping[str, Any]) -> AdapterSpec:
    """The spec with the values at these places."""
    for place, value in changes.items():
        section, field = place.split(".")
        part = getattr(spec, section).model_copy(update={field: value})
        spec = spec.model_copy(update={section: part})
    return spec


def in_words(ways: Iterable[Mapping[str, Any]]) -> str:
    """Changes as a spec file has them.

    >>> in_words([{"training.micro_batch": 4}, {"training.gradient_checkpointing": True, "base.quantization": "nf4"}])
    'training.micro_batch: 4 or training.gradient_checkpointing: true and base.quantization: nf4'
    """
    return " or ".join(" and ".join(f"{place}: {as_yaml(value)}" for place, value in way.items()) for way in ways)


def as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def rows_at_once(spec: AdapterSpec) -> int:
    """Of one process."""
    share = -(-spec.training.batch_size // spec.resources.team_size)
    return min(spec.training.micro_batch or share, share)


def may_share_base(spec: AdapterSpec) -> bool:
    """Whether `resources.shard_base` is a choice: several processes, and a method that needs no weight but in turn."""
    return spec.resources.team_size > 1 and spec.method.name not in WANT_THE_WHOLE_BASE
