from __future__ import annotations

import numpy as np
import pytest

from tasks.drift.kept import Held, kept_slices
from tasks.promotion import keeps_slice
from tasks.specs import GateSpec

GATES = GateSpec(max_forgetting=0.1, min_rows=50)


def slice_of(rows: int, lost: int, won: int) -> Held:
    """The champion answers half of the rows; the candidate loses some of those and wins some of the others."""
    old = [1.0] * (rows // 2) + [0.0] * (rows - rows // 2)
    new = [1.0 - one if place < lost or 0 <= place - rows // 2 < won else one for place, one in enumerate(old)]
    return Held(new, old)


def test_slices_that_can_prove_it_are_judged_each_by_itself() -> None:
    slices = {"a": slice_of(400, 20, 20), "b": slice_of(400, 80, 20), "c": slice_of(60, 9, 9)}
    gates = kept_slices(slices, GATES)
    assert gates == [keeps_slice(name, held.new, held.old, GATES) for name, held in slices.items()]
    assert [gate.passed for gate in gates] == [True, False, False]


def test_small_slices_are_kept_each_as_measured_and_proven_together() -> None:
    small = {name: slice_of(60, 9, 9) for name in "abcd"}
    assert not any(keeps_slice(name, held.new, held.old, GATES).passed for name, held in small.items())
    *each, together = kept_slices({**small, "large": slice_of(400, 20, 20)}, GATES)
    assert [gate.name for gate in each] == [f"kept on {name}" for name in (*"abcd", "large")]
    assert (together.name, together.n, together.passed) == ("kept on a and b and c and d", 240, True)
    assert all(gate.passed for gate in each)


def test_what_one_small_slice_loses_is_not_made_good_by_what_the_others_gain() -> None:
    slices = {"a": slice_of(60, 12, 4), "b": slice_of(60, 0, 20), "c": slice_of(60, 0, 20)}
    gates = kept_slices(slices, GATES)
    assert gates[-1].passed
    assert [gate.name for gate in gates if not gate.passed] == ["kept on a"]


def test_slices_with_fewer_rows_than_the_gates_want_judge_together() -> None:
    *each, together = kept_slices({name: slice_of(40, 2, 2) for name in "abcd"}, GATES)
    assert together.passed
    assert not any("fewer than" in gate.sentence for gate in (*each, together))
    *_, few = kept_slices({name: slice_of(20, 0, 0) for name in "ab"}, GATES)
    assert not few.passed
    assert few.sentence == "kept on a and b: 40 rows judge, fewer than the 50 of gates.min_rows"


@pytest.mark.parametrize("slices", [2, 6])
def test_a_candidate_that_forgot_a_tenth_everywhere_passes_no_more_often_than_the_bound_says(slices: int) -> None:
    """The witness draws candidates that are worse by just the margin: at most one in twenty may pass."""
    chance, passed, turns = np.random.default_rng(slices), 0, 120
    for _ in range(turns):
        drawn = {}
        for name in range(slices):
            change = chance.choice([-1.0, 0.0, 1.0], p=[0.2, 0.7, 0.1], size=60)
            drawn[f"{name}"] = Held(np.where(change > 0, 1.0, 0.0).tolist(), np.where(change < 0, 1.0, 0.0).tolist())
        passed += all(gate.passed for gate in kept_slices(drawn, GATES))
    assert passed <= 0.09 * turns


def test_with_more_and_more_small_slices_an_equal_candidate_passes_more_often_together_than_alone() -> None:
    chance, together, alone = np.random.default_rng(1), 0, 0
    for _ in range(40):
        drawn = {}
        for name in range(8):
            change = chance.choice([-1.0, 0.0, 1.0], p=[0.05, 0.9, 0.05], size=100)
            drawn[f"{name}"] = Held(np.where(change > 0, 1.0, 0.0).tolist(), np.where(change < 0, 1.0, 0.0).tolist())
        together += all(gate.passed for gate in kept_slices(drawn, GateSpec(max_forgetting=0.07)))
        alone += all(
            keeps_slice(n, held.new, held.old, GateSpec(max_forgetting=0.07)).passed for n, held in drawn.items()
        )
    assert alone <= 8 < 24 <= together, (alone, together)
