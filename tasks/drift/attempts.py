"""What the next attempt does otherwise, when a gate has refused a candidate: one bounded change for what was lost."""

from __future__ import annotations

from typing import NamedTuple

from tasks.promotion import Decision
from tasks.specs import AdapterSpec

MOST_REPLAY = 0.8
LEAST_MORE = 0.05  # of replay; less is no other attempt
LARGEST_RANK = 128


class Change(NamedTuple):
    """The spec of the next attempt, and what is different in it and why."""

    spec: AdapterSpec
    sentence: str


def gentler(spec: AdapterSpec, fault: str) -> Change:
    """The next attempt after a run whose curve came to nothing that may be kept: a third of the rate.

    Going on from the champion it is the share of the rate that falls, so that a later start from the base has it all.
    """
    if spec.retrain.start == "champion":
        changed: dict[str, object] = {
            "retrain": spec.retrain.model_copy(update={"rate_factor": spec.retrain.rate_factor / 3})
        }
    else:
        rate = spec.training.learning_rate / 3
        changed = {"training": spec.training.model_copy(update={"learning_rate": rate})}
    return Change(spec.model_copy(update=changed), f"{fault}: a third of the rate")


def next_attempt(spec: AdapterSpec, decision: Decision, all_replayed: float = 1.0) -> Change | None:
    """The next attempt after a refusal; None where no further attempt could help.

    A candidate that lost an earlier slice replays more of the past and, if it goes on from the champion, takes smaller
    steps. One that gained too little, or is fresh and lost a slice of which every row was replayed, gets more room:
    full steps if it went on from the champion with smaller ones, a fresh adapter if with full ones, else twice the
    rank. Too few rows to judge on is nothing that another training can mend.

    Args:
        all_replayed: share of the training rows that all that was ever learned from would be.
    """
    failed = [gate for gate in decision.gates if not gate.passed]
    if not failed or any(gate.bound > gate.required for gate in failed):  # refused for its few rows alone
        return None
    retrain, lost = spec.retrain, [gate for gate in failed if gate.name.startswith("kept on ")]
    if lost:
        worst = min(lost, key=lambda gate: gate.measured)
        where = worst.name.removeprefix("kept on ")
        said = f"it lost {where} by {-worst.measured:.3f}" if worst.measured < 0 else f"it may have lost {where}"
        share = min(MOST_REPLAY, all_replayed, (1 + retrain.replay_share) / 2)
        changed, notes = {}, []
        if share >= retrain.replay_share + LEAST_MORE:
            changed["replay_share"] = share
            notes.append(f"replay {retrain.replay_share:.0%} -> {share:.0%}")
        if retrain.start == "champion":
            changed["rate_factor"] = retrain.rate_factor / 2
            notes.append("half the rate")
        if not changed:
            return _larger(spec, f"{said}, and no more is left to replay")
        return Change(
            spec.model_copy(update={"retrain": retrain.model_copy(update=changed)}), f"{said}: {', '.join(notes)}"
        )
    if retrain.start == "champion":
        if retrain.rate_factor >= 1:
            fresh = spec.model_copy(update={"retrain": retrain.model_copy(update={"start": "base"})})
            return Change(fresh, "it gained too little: a fresh adapter on the base")
        faster = spec.model_copy(update={"retrain": retrain.model_copy(update={"rate_factor": 1.0})})
        return Change(faster, f"it gained too little: the full rate instead of {retrain.rate_factor:g} of it")
    return _larger(spec, "it gained too little")


def _larger(spec: AdapterSpec, why: str) -> Change | None:
    rank = min(LARGEST_RANK, 2 * spec.method.rank)
    if rank == spec.method.rank:
        return None
    larger = spec.model_copy(update={"method": spec.method.model_copy(update={"rank": rank})})
    return Change(larger, f"{why}: rank {spec.method.rank} -> {rank}")
