"""The gates: decided by bounds over paired rows, never by a lucky mean."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from tasks.errors import GateRefused
from tasks.evaluation.comparison import gain
from tasks.promotion import (
    Gate,
    beats_base,
    gains_on_fresh,
    judge,
    keeps_share,
    keeps_slice,
    retention,
    score_line,
)
from tasks.specs import GateSpec, MergeGateSpec

GATES = GateSpec()
outcomes = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0])] * 3), min_size=1, max_size=200)


def coins(share: float, n: int, seed: int) -> list[float]:
    draw = Random(seed)
    return [float(draw.random() < share) for _ in range(n)]


def test_a_lucky_candidate_with_few_rows_does_not_pass() -> None:
    lucky, base = [1.0, 1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0, 1.0]
    gate = beats_base(lucky, base, GateSpec(min_rows=1))
    assert gate.measured == pytest.approx(0.4)
    assert not gate.passed
    assert beats_base(lucky * 40, base * 40, GATES).passed  # the same share over 200 rows is no luck


@pytest.mark.parametrize("n", [50, 98, 100, 200, 400])
def test_a_slice_that_lost_as_much_as_its_margin_is_kept_at_most_as_often_as_the_confidence_says(n: int) -> None:
    lost_share = GATES.max_forgetting
    kept = 0.0
    for lost in range(n // 8):  # of a champion that was always right
        rows = [0.0] * lost + [1.0] * (n - lost)
        kept += keeps_slice("old", rows, [1.0] * n, GATES).passed * binom.pmf(lost, n, lost_share)
    assert kept < 0.06


def test_fewer_rows_than_asked_for_never_pass_however_good() -> None:
    assert not beats_base([1.0] * 49, [0.0] * 49, GATES).passed
    assert beats_base([1.0] * 50, [0.0] * 50, GATES).passed


def test_equal_candidates_pass_no_gate_that_asks_for_a_gain() -> None:
    same = coins(0.7, 400, 1)
    assert not beats_base(same, same, GATES).passed
    assert not gains_on_fresh(same, same, GATES).passed
    assert keeps_slice("old", same, same, GATES).passed
    assert not keeps_slice("old", same[:60], same[:60], GATES).passed  # 60 rows cannot show that fewer than 3 % fall


def test_two_equally_good_candidates_pass_at_most_as_often_as_the_confidence_says() -> None:
    passed = sum(beats_base(coins(0.6, 300, 2 * i), coins(0.6, 300, 2 * i + 1), GATES).passed for i in range(300))
    assert passed / 300 < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5  # three standard errors above the promised 5 %
    assert passed > 0


def test_a_forgetting_candidate_is_refused_with_the_slice_named() -> None:
    champion = coins(0.9, 500, 3)
    forgetful = [0.0 if i % 10 == 0 else outcome for i, outcome in enumerate(champion)]
    gates = [
        beats_base(forgetful, [0.0] * 500, GATES),
        keeps_slice("2026-q1", champion, champion, GATES),
        keeps_slice("2026-q2", forgetful, champion, GATES),
    ]
    decision = judge("triage:7", gates)
    assert not decision.passed
    assert "2026-q2" in decision.sentence
    assert "2026-q1" not in decision.sentence
    with pytest.raises(GateRefused) as refused:
        decision.refuse_unless_passed()
    assert refused.value.exit_code == 5
    (problem,) = refused.value.problems
    assert (problem.code, problem.where) == ("E-GATE-001", "triage:7")
    assert "kept on 2026-q2" in problem.wrong


def test_a_fall_within_the_margin_is_kept_and_a_wider_one_is_not() -> None:
    champion = [1.0] * 2000
    fall = {lost: [0.0] * lost + [1.0] * (2000 - lost) for lost in (20, 60, 100)}
    kept = {
        lost: keeps_slice("old", rows, champion, GateSpec(max_forgetting=0.03)).passed for lost, rows in fall.items()
    }
    assert kept == {20: True, 60: False, 100: False}  # 3 % exactly cannot be shown to be above -3 %


@given(outcomes, st.floats(-0.5, 0.5))
def test_a_gate_is_decided_by_its_bound(rows: list[tuple[float, ...]], required: float) -> None:
    new, old = [row[0] for row in rows], [row[1] for row in rows]
    gates = GateSpec(beat_base_by=required, min_rows=1)
    gate = beats_base(new, old, gates)
    bound = gain(new, old, gates.confidence)
    assert (gate.bound, gate.measured, gate.n) == (bound.low, bound.mean, len(rows))
    assert gate.passed == (bound.low > required)
    assert ("not above" in gate.sentence) != gate.passed


@given(outcomes, st.floats(0.0, 0.3), st.floats(0.0, 0.3))
def test_a_stricter_demand_never_lets_more_through(rows: list[tuple[float, ...]], one: float, other: float) -> None:
    new, old = [row[0] for row in rows], [row[1] for row in rows]
    low, high = sorted((one, other))
    passed = [beats_base(new, old, GateSpec(beat_base_by=bar, min_rows=1)).passed for bar in (low, high)]
    assert passed in ([True, True], [True, False], [False, False])
    kept = [keeps_slice("s", new, old, GateSpec(max_forgetting=m, min_rows=1)).passed for m in (high, low)]
    assert kept in ([True, True], [True, False], [False, False])


def test_more_confidence_asks_for_more() -> None:
    new, old = coins(0.8, 200, 4), coins(0.7, 200, 5)
    bounds = [beats_base(new, old, GateSpec(confidence=c)).bound for c in (0.6, 0.8, 0.95, 0.99)]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == 4


@given(outcomes)
def test_retention_is_one_for_the_expert_and_nothing_for_the_base(rows: list[tuple[float, ...]]) -> None:
    expert, base = [row[0] for row in rows], [row[1] for row in rows]
    gained = sum(expert) > sum(base)
    assert retention(expert, expert, base) == 1.0
    assert retention(base, expert, base) == (0.0 if gained else 1.0)


@given(outcomes)
def test_retention_is_linear_in_the_merged_score(rows: list[tuple[float, ...]]) -> None:
    merged, expert, base = (sum(row[i] for row in rows) / len(rows) for i in range(3))
    if expert > base:
        found = retention(*([row[i] for row in rows] for i in range(3)))  # type: ignore[arg-type]
        assert found == pytest.approx((merged - base) / (expert - base))


def test_a_merge_passes_where_it_surely_keeps_its_share_and_only_there() -> None:
    base, expert = [0.0] * 600, [1.0] * 600
    kept = {share: [1.0] * int(600 * share) + [0.0] * (600 - int(600 * share)) for share in (0.3, 0.49, 0.52, 0.7, 1.0)}
    gates = {share: keeps_share("triage", rows, expert, base, MergeGateSpec()) for share, rows in kept.items()}
    assert {share: gate.passed for share, gate in gates.items()} == {
        0.3: False,
        0.49: False,
        0.52: False,  # the measured share is above a half, the bound is not
        0.7: True,
        1.0: True,
    }
    for share, gate in gates.items():
        assert gate.measured == pytest.approx(share)
        assert gate.bound <= gate.measured
        assert gate.passed == (gate.bound > 0.5)


def test_a_merge_of_an_expert_that_gained_nothing_must_not_lose() -> None:
    base = coins(0.5, 400, 6)
    worse = [0.0 if i % 3 == 0 else outcome for i, outcome in enumerate(base)]
    gate = keeps_share("idle", worse, base, base, MergeGateSpec())
    assert not gate.passed


def test_a_merge_is_not_judged_on_too_few_rows() -> None:
    assert not keeps_share("triage", [1.0] * 49, [1.0] * 49, [0.0] * 49, MergeGateSpec(min_rows=50)).passed


def test_a_decision_passes_only_if_every_gate_does() -> None:
    good, bad = Gate("a", 0.1, 0.1, 0.0, 99, True), Gate("b", 0.1, -0.1, 0.0, 99, False)
    assert judge("c", [good, good]).passed
    assert judge("c", [good, good]).sentence == "every gate passed"
    judge("c", [good]).refuse_unless_passed()
    assert not judge("c", {"x": good, "y": bad}).passed


def test_a_score_is_read_with_its_interval() -> None:
    # Wilson's interval, as R says it: binom.confint(3, 4, method="wilson")
    assert score_line([1.0] * 3 + [0.0]) == "0.750 [0.301, 0.954] n=4"


@pytest.mark.parametrize("gate", [beats_base, gains_on_fresh])
def test_a_gate_that_has_too_few_rows_says_so_and_not_that_the_bound_is_missed(gate: Callable[..., Gate]) -> None:
    found = gate([1.0] * 49, [0.0] * 49, GateSpec(min_rows=50))
    assert not found.passed
    assert found.bound > found.required
    assert found.sentence.endswith(": 49 rows judge, fewer than the 50 of gates.min_rows")
