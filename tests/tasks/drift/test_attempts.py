from __future__ import annotations

from typing import Any

import pytest

from tasks.drift.attempts import gentler, next_attempt
from tasks.promotion import Decision, Gate
from tasks.specs import AdapterSpec


def spec(**changes: Any) -> AdapterSpec:
    tree = {
        "task": "triage",
        "kind": "generation",
        "base": {"model": "/nowhere"},
        "data": {"source": "rows.jsonl", "prompt": "{text}", "completion": "{label}"},
        "retrain": {"replay_share": 0.5, "start": "champion", "rate_factor": 0.5, **changes},
    }
    return AdapterSpec.model_validate(tree)


def refused(*failed: str, bound: float = -0.2, measured: float = -0.1) -> Decision:
    names = ("gain on fresh rows", "kept on test of 1234", "gain over the base")
    gates = [Gate(n, measured, bound if n in failed else 0.5, 0.0, 90, n not in failed) for n in names]
    return Decision("triage:2", tuple(gates))


@pytest.mark.parametrize("start", ["champion", "base"])
def test_what_was_lost_is_replayed_more_and_the_slice_is_named(start: str) -> None:
    change = next_attempt(spec(start=start), refused("kept on test of 1234"))
    assert change is not None
    assert change.spec.retrain.replay_share == 0.75
    assert change.spec.retrain.rate_factor == (0.25 if start == "champion" else 0.5)
    assert change.sentence.startswith("it lost test of 1234 by 0.100: replay 50% -> 75%")


def test_where_every_row_was_replayed_a_fresh_candidate_gets_more_room_and_others_smaller_steps() -> None:
    """All that was learned from is 52 % of the rows at most: 50 % cannot become 75 %."""
    larger = next_attempt(spec(start="base"), refused("kept on test of 1234"), all_replayed=0.52)
    assert larger is not None
    assert (larger.spec.method.rank, larger.spec.retrain.replay_share) == (32, 0.5)
    assert larger.sentence == "it lost test of 1234 by 0.100, and no more is left to replay: rank 16 -> 32"
    slower = next_attempt(spec(start="champion"), refused("kept on test of 1234"), all_replayed=0.52)
    assert slower is not None
    assert slower.sentence == "it lost test of 1234 by 0.100: half the rate"
    unsure = next_attempt(spec(start="champion"), refused("kept on test of 1234", measured=0.01), all_replayed=0.52)
    assert unsure is not None
    assert unsure.sentence == "it may have lost test of 1234: half the rate"  # too few rows to be sure
    some = next_attempt(spec(start="base"), refused("kept on test of 1234"), all_replayed=0.6)
    assert some is not None
    assert some.spec.retrain.replay_share == 0.6


def test_too_little_gain_gets_more_room() -> None:
    faster = next_attempt(spec(), refused("gain on fresh rows"))
    assert faster is not None
    assert faster.spec.retrain.rate_factor == 1.0
    fresh = next_attempt(faster.spec, refused("gain on fresh rows"))
    assert fresh is not None
    assert (fresh.spec.retrain.start, fresh.spec.method.rank) == ("base", 16)
    larger = next_attempt(fresh.spec, refused("gain on fresh rows"))
    assert larger is not None
    assert larger.spec.method.rank == 32


def test_every_attempt_differs_from_all_before_and_the_changes_end() -> None:
    for failed in ("kept on test of 1234", "gain on fresh rows"):
        for start in ("champion", "base"):
            seen, now = [], spec(start=start)
            while now is not None and len(seen) < 100:
                assert now not in seen
                assert now.retrain.replay_share <= 0.8
                assert now.method.rank <= 128
                seen.append(now)
                change = next_attempt(now, refused(failed))
                now = change and change.spec
                if failed.startswith("kept") and start == "champion" and len(seen) == 12:
                    break  # ever smaller steps never end by themselves: `retrain.attempts` bounds them
            assert len(seen) <= 12


def test_nothing_is_tried_again_where_nothing_was_refused_or_rows_are_too_few() -> None:
    assert next_attempt(spec(), refused()) is None
    assert next_attempt(spec(), refused("kept on test of 1234", bound=0.1)) is None


@pytest.mark.parametrize("start", ["champion", "base"])
def test_after_a_run_that_came_to_nothing_the_next_one_takes_a_third_of_the_rate(start: str) -> None:
    """The peak rate of a run is the training's, times the factor where it goes on from the champion."""

    def peak(asked: AdapterSpec) -> float:
        return asked.training.learning_rate * (asked.retrain.rate_factor if start == "champion" else 1.0)

    before = spec(start=start)
    after = gentler(before, "diverged: loss 9 at the end")
    assert peak(after.spec) == pytest.approx(peak(before) / 3)
    assert after.sentence == "diverged: loss 9 at the end: a third of the rate"
    assert after.spec.retrain.replay_share == before.retrain.replay_share
