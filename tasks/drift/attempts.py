"""What the next attempt does otherwise, when a gate has refused a candidate: one bounded change for what was lost."""

from __future__ import annotations

from typing import NamedTuple

from tasks.promotion import Decision
from tasks.specs import AdapterSpec

MOST_REPLAY = 0.8
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


def next_attempt(spec: AdapterSpec, decision: Decision) -> Change | None:
    """The next attempt after a refusal; None where no further attempt could help.

    A candidate that lost an earlier slice replays more of the past and, if it goes on from the champion, takes smaller
    steps. One that kept the past but gained too little gets more room: full steps if it went on from the champion with
    smaller ones, else twice the rank. Too few rows to judge on is nothing that another training can mend.
    """
    failed = [gate for gate in decision.gates if not gate.passed]
    if not failed or any(gate.bound > gate.required for gate in failed):  # refused for its few rows alone
        return None
    retrain, lost = spec.retrain, [gate for gate in failed if gate.name.startswith("kept on ")]
    if lost:
        worst = min(lost, key=lambda gate: gate.measured)
        share = min(MOST_REPLAY, (1 + retrain.replay_share) / 2)
        gentler = {"rate_factor": retrain.rate_factor / 2} if retrain.start == "champion" else {}
        if share <= retrain.replay_share and not gentler:
            return None
        note = f"replay {retrain.replay_share:.0%} -> {share:.0%}" + (", half the rate" if gentler else "")
        changed = spec.model_copy(update={"retrain": retrain.model_copy(update={"replay_share": share, **gentler})})
        return Change(changed, f"it {worst.name.replace('kept on', 'lost', 1)} by {-worst.measured:.3f}: {note}")
    if retrain.start == "champion":
        if retrain.rate_factor >= 1:
            return None
        changed = spec.model_copy(update={"retrain": retrain.model_copy(update={"rate_factor": 1.0})})
        return Change(changed, f"it gained too little: the full rate instead of {retrain.rate_factor:g} of it")
    rank = min(LARGEST_RANK, 2 * spec.method.rank)
    if rank == spec.method.rank:
        return None
    changed = spec.model_copy(update={"method": spec.method.model_copy(update={"rank": rank})})
    return Change(changed, f"it gained too little: rank {spec.method.rank} -> {rank}")
