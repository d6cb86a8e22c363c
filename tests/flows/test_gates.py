"""What a spec may ask for beyond right answers: honest confidences, and answers in time."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from flows.blessings import answer_gates
from tasks.promotion import answers_in_time, calibrated
from tasks.specs import AdapterSpec, GateSpec, MergeGateSpec


def gates(**asked: Any) -> GateSpec:
    return GateSpec(min_rows=30, **asked)


def test_confidences_that_come_true_pass_and_boasts_do_not() -> None:
    chance = random.Random(0)
    sure = [chance.random() for _ in range(2000)]
    right = [float(chance.random() < s) for s in sure]
    honest = calibrated(sure, right, gates(max_calibration_error=0.1))
    assert honest.passed
    assert honest.bound <= honest.measured <= 0
    boast = calibrated([1.0] * 2000, right, gates(max_calibration_error=0.1))
    assert not boast.passed
    assert boast.measured == pytest.approx(np.mean(right) - 1)
    few = calibrated(sure[:40], right[:40], gates(max_calibration_error=0.1))
    assert not few.passed  # forty honest rows do not prove it


def test_the_bound_of_the_seconds_lies_above_the_true_quantile_as_often_as_it_says() -> None:
    """Answers take exponential times, whose 95 % quantile is known: ln 20. A wrong side is seen in at most 5 %."""
    chance, above = np.random.default_rng(1), 0
    for _ in range(400):
        gate = answers_in_time(chance.exponential(size=200).tolist(), gates(max_answer_seconds=1.0))
        above += -gate.bound >= np.log(20)
    assert above >= 0.95 * 400 - 3 * (400 * 0.95 * 0.05) ** 0.5
    assert answers_in_time([0.1] * 200, gates(max_answer_seconds=0.2)).passed
    assert not answers_in_time([0.1] * 30, gates(max_answer_seconds=0.2)).passed  # too few rows have no such bound


def test_an_adapter_and_a_merge_are_asked_for_the_same_gates_and_for_none_unless_told() -> None:
    sure, right, seconds = (0.9,) * 100, (1.0,) * 100, (0.5,) * 100
    for spec in (GateSpec, MergeGateSpec):
        assert answer_gates(spec(), sure, right, seconds) == []
        both = answer_gates(spec(max_calibration_error=0.2, max_answer_seconds=0.1), sure, right, seconds, on="desk")
        assert [(gate.name, gate.passed) for gate in both] == [
            ("calibration on desk", True),
            ("seconds of an answer on desk", False),
        ]


def test_both_are_measured_once_on_the_test_rows_and_remembered(factory: Any, intent: Any) -> None:
    from flows.blessings import asked_gates
    from flows.wiring import opened

    version = intent.outcome.version
    spec = AdapterSpec.model_validate(version.spec)
    asked = {"max_calibration_error": 1.0, "max_answer_seconds": 60.0}
    wanted = spec.evaluation.gates.model_copy(update=asked)
    spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"gates": wanted})})
    with factory.active():
        first = asked_gates(opened(), version, spec)
        assert asked_gates(opened(), version, spec) == first
        told = {e.metric: e for e in opened().ledger.evaluations(version.ref)}
    assert [gate.name for gate in first] == ["calibration", "seconds of an answer"]
    assert all(gate.passed and gate.n >= 59 for gate in first)
    assert told["answered"].score == pytest.approx(intent.outcome.scores.score, abs=0.05)
    assert len(told["answered"].confidences) == told["answered"].n == first[0].n
    assert all(second > 0 for second in told["seconds"].outcomes)


def test_a_refusal_shows_every_gate_with_its_figures(factory: Any, moved: Any) -> None:
    said = factory.run("promote", "topic:2")
    assert said.code == 5
    for word in ("gate", "measured", "bound", "must exceed", "gain over the base", "kept on test of"):
        assert word in said.out
    answer = json.loads(factory.run("--json", "promote", "topic:2").out)
    assert answer["exit_code"] == 5
    assert {"name", "measured", "bound", "required", "n", "passed"} <= answer["result"]["gates"][0].keys()
