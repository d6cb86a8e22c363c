"""From a finding to one bounded change of the recipe; torch-free.

A finding has its changes in the order in which they are tried. Each stays within a bound of what was asked for, and no
configuration is trained twice: a change of what the method does not read is none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tasks.methods.catalogue import METHODS
from tasks.specs import AdapterSpec, MethodSpec
from tasks.training.diagnosis import Finding

RATE_BOUND = 100.0
SIZE_BOUND = 4
DROPOUT_BOUND, DECAY_BOUND = 0.3, 0.1


class Repair(NamedTuple):
    """The spec to train next, and why: what is changed, and the finding that asks for it."""

    spec: AdapterSpec
    reason: str


Change = Callable[[AdapterSpec, AdapterSpec], Mapping[str, Any] | None]  # (asked, now) -> changed fields, or no way


def _rate(factor: float) -> Change:
    def change(asked: AdapterSpec, now: AdapterSpec) -> Mapping[str, Any] | None:
        rate, first = now.training.learning_rate * factor, asked.training.learning_rate
        within = first / RATE_BOUND <= rate <= min(1.0, first * RATE_BOUND)
        return {"training.learning_rate": float(f"{rate:.3g}")} if within else None

    return change


def _clip(asked: AdapterSpec, now: AdapterSpec) -> Mapping[str, Any] | None:
    norm = now.training.max_grad_norm / 3
    return {"training.max_grad_norm": float(f"{norm:.3g}")} if norm >= asked.training.max_grad_norm / 10 else None


def _more_rank(asked: AdapterSpec, now: AdapterSpec) -> Mapping[str, Any] | None:
    rank, ratio = 2 * now.method.rank, now.method.alpha_value / now.method.rank
    return {"method.rank": rank, "method.alpha": ratio * rank} if rank <= SIZE_BOUND * asked.method.rank else None


def _less_rank(asked: AdapterSpec, now: AdapterSpec) -> Mapping[str, Any] | None:
    rank, ratio = now.method.rank // 2, now.method.alpha_value / now.method.rank
    return {"method.rank": rank, "method.alpha": ratio * rank} if rank * SIZE_BOUND >= asked.method.rank > 1 else None


def _all_linear(asked: AdapterSpec, now: AdapterSpec) -> Mapping[str, Any] | None:
    if now.method.targets == "all-linear" and now.method.layers is None:
        return None
    return {"method.targets": "all-linear", "method.layers": None}


def _magnitudes(asked: AdapterSpec, now: AdapterSpec) -> Mapping[str, Any] | None:
    return {"method.name": "dora"} if now.method.name == "lora" and not now.resources.shard_base else None


def _hold_back(asked: AdapterSpec, now: AdapterSpec) -> Mapping[str, Any] | None:
    """More dropout and decay, each up to its bound, together: they are one remedy."""
    dropout = max(now.method.dropout, min(DROPOUT_BOUND, max(0.05, 2 * now.method.dropout)))
    decay = max(now.training.weight_decay, min(DECAY_BOUND, max(0.01, 3 * now.training.weight_decay)))
    return {"method.dropout": dropout, "training.weight_decay": decay}


def _longer(factor: float) -> Change:
    def change(asked: AdapterSpec, now: AdapterSpec) -> Mapping[str, Any] | None:
        field = "steps" if now.training.steps else "epochs"
        length, first = getattr(now.training, field) * factor, getattr(asked.training, field)
        length = max(1, round(length)) if field == "steps" else length
        return {f"training.{field}": length} if first / SIZE_BOUND <= length <= first * SIZE_BOUND else None

    return change


CHANGES: Mapping[str, Sequence[Change]] = {
    "not a number": (_rate(1 / 10), _rate(1 / 3)),
    "diverged": (
        _rate(1 / 10),
        _rate(1 / 3),
    ),  # rates that leave nothing but frequencies were 20 times the best, or more
    "did not move": (_rate(3.0), _all_linear, _rate(10.0), _more_rank, _magnitudes, _longer(2.0)),
    "no gradient": (_all_linear,),
    "identical to the base": (_rate(3.0), _rate(10.0), _all_linear),
    "spiked": (_clip, _rate(1 / 3), _rate(1 / 10)),
    "rank too low": (_more_rank, _magnitudes, _all_linear),
    "wrong layers": (_all_linear, _more_rank, _magnitudes),
    "plateau": (_rate(1 / 3), _more_rank, _all_linear, _magnitudes),
    "overfit": (_hold_back, _longer(0.5), _less_rank, _rate(1 / 3)),
    "still improving": (_longer(2.0), _rate(3.0)),
}


def next_repair(
    asked: AdapterSpec,
    now: AdapterSpec,
    findings: Sequence[Finding],
    tried: Collection[AdapterSpec],
    fits: Callable[[AdapterSpec], bool] = lambda spec: True,
) -> Repair | None:
    """The first change that a finding of the last run asks for and that was not tried yet.

    Args:
        asked: the spec as it came; bounds are counted from it.
        now: the spec of the last run.
        tried: every spec that was trained, `asked` and `now` among them.
        fits: whether a spec fits the base and the memory.
    """
    known = [as_read(spec) for spec in (*tried, now)]
    for finding in findings:
        for changed in _changed(asked, now, CHANGES.get(finding.cause, ())):
            spec = _with(now, changed)
            if as_read(spec) not in known and fits(spec):
                return Repair(spec, f"{_words(now, changed)}, because: {finding.cause}, {finding.evidence}")
    return None


def as_read(spec: AdapterSpec) -> AdapterSpec:
    """The spec without what its method does not read: two that are equal here train the same adapter."""
    reads = METHODS[spec.method.name].reads
    return spec.model_copy(update={"method": MethodSpec(**{field: getattr(spec.method, field) for field in reads})})


def _changed(asked: AdapterSpec, now: AdapterSpec, changes: Sequence[Change]) -> Iterator[Mapping[str, Any]]:
    """What each change would write, without fields that the method does not read."""
    for change in changes:
        found = change(asked, now) or {}
        reads = METHODS[found.get("method.name", now.method.name)].reads
        read = {f"method.{field}" for field in reads}
        yield {path: value for path, value in found.items() if path in read or not path.startswith("method.")}


def _with(spec: AdapterSpec, changed: Mapping[str, Any]) -> AdapterSpec:
    for path, value in changed.items():
        section, field = path.split(".")
        spec = spec.model_copy(update={section: getattr(spec, section).model_copy(update={field: value})})
    return spec


def _words(spec: AdapterSpec, changed: Mapping[str, Any]) -> str:
    """What is changed: "training.learning_rate 0.0002 -> 0.0006"."""
    parts = []
    for path, value in changed.items():
        section, field = path.split(".")
        before = getattr(getattr(spec, section), field)
        if before != value and not (field == "alpha" and before is None):
            parts.append(f"{path} {before} -> {value}")
    return " and ".join(parts)
