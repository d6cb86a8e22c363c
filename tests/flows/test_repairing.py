"""A recipe that is wrong on purpose, repaired within its budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

TIMID = {"training__learning_rate": 2e-5, "training__steps": 40}


@pytest.fixture(scope="module")
def repaired(new_factory: Any, desk: Any) -> Any:
    """A rate that is far too low, with two repairs; what the test rows were asked for is counted. The memory is as much
    as its short rows take and no more."""
    import tasks.evaluation.scoring as scoring
    from flows.train import prepared, train
    from flows.wiring import opened
    from tasks.spec_files import load_adapter_spec

    factory, asked_rows = new_factory(), []
    score = scoring.score

    def counting(base: Any, model: Any, examples: Any, metric: str) -> Any:
        asked_rows.append(len(examples))
        return score(base, model, examples, metric)

    asked = {"repair": {"attempts": 2, "budget_minutes": 10}, **TIMID}
    with factory.active():
        need = prepared(opened(), load_adapter_spec(factory.spec(desk["intent"], **asked))).plan.peak_bytes
    path = factory.spec(desk["intent"], "timid", resources__memory_gib=need / 2**30, **asked)
    with factory.active(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "score", counting)
        outcome = train(str(path), promote=False)
        again = train(str(path), promote=False)
    return factory, outcome, asked_rows, again


def test_the_best_attempt_on_the_validation_rows_is_registered_with_its_own_recipe(repaired: Any) -> None:
    factory, outcome, _, _ = repaired
    assert outcome.version.spec["training"]["learning_rate"] == pytest.approx(18e-5)
    assert [finding.cause for finding in outcome.candidate.findings].count("repaired") == 1
    assert factory.sql("SELECT count(*) FROM versions") == [(1,)]
    assert factory.litter() == []
    assert list((factory.home / "checkpoints").iterdir()) == []


def test_each_attempt_is_a_run_under_the_first_with_its_reason(repaired: Any) -> None:
    factory, _, _, _ = repaired
    mlflow = factory.mlflow()
    runs = mlflow.search_runs([mlflow.get_experiment_by_name("intent").experiment_id])
    (first,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    repairs = sorted((r for r in runs if r is not first), key=lambda run: run.info.start_time)
    assert [run.data.tags["mlflow.parentRunId"] for run in repairs] == [first.info.run_id] * 2
    assert [run.data.tags["factory.repair"].split(", because: ")[0] for run in repairs] == [
        "training.learning_rate 2e-05 -> 6e-05",
        "training.learning_rate 6e-05 -> 0.00018",
    ]
    assert [run.data.params["training.learning_rate"] for run in repairs] == ["6e-05", "0.00018"]


def test_the_test_rows_are_asked_once_for_the_base_and_once_for_the_winner(repaired: Any) -> None:
    _, outcome, asked_rows, _ = repaired
    assert asked_rows.count(outcome.scores.n) == 2
    assert len(asked_rows) == 5  # and three times the validation rows


def test_the_same_spec_again_gives_the_repaired_version(repaired: Any) -> None:
    _, outcome, _, again = repaired
    assert again.version == outcome.version
    assert again.candidate is None


def test_a_repair_fits_where_a_run_of_that_recipe_would_be_let_through(
    new_factory: Any, desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that there was before the first run counts, not what that run has left of it."""
    from flows.learn import DeviceMemory, planned
    from flows.train import prepared
    from flows.wiring import opened
    from tasks.memory import Correction
    from tasks.spec_files import load_adapter_spec

    factory, free = new_factory(), 2**40
    monkeypatch.setattr("flows.learn.device_memory", lambda spec: DeviceMemory(False, free, 0))
    monkeypatch.setattr("flows.learn.correction_of", lambda *_: Correction(1.5, 0, 3))
    spec = load_adapter_spec(factory.spec(desk["intent"]))
    repaired = load_adapter_spec(factory.spec(desk["intent"], method__rank=32))
    with factory.active():
        home = opened()
        own, more = (prepared(home, each).plan.peak_bytes for each in (spec, repaired))
        assert own < more
        ready = prepared(home, spec)
        first = ready.data.snapshot.examples("train")[0]
        longer = replace(first, input=f"{first.input} " * 3)  # one that is replayed counts as those of the window do
        assert planned(ready.spec, ready.base, ready.data, [first]).plan.peak_bytes == ready.plan.peak_bytes
        assert planned(ready.spec, ready.base, ready.data, [longer]).plan.peak_bytes > ready.plan.peak_bytes
        for free in (own, more - 1, more):
            room, free = prepared(home, spec), 0
            assert room.fits(spec)
            assert room.fits(repaired) == (room.plan.available_bytes >= more)


def test_without_time_for_another_run_the_first_one_stands(new_factory: Any, desk: Any) -> None:
    from flows.train import train

    factory = new_factory()
    path = factory.spec(desk["intent"], "hurried", repair={"attempts": 2, "budget_minutes": 1e-6}, **TIMID)
    with factory.active():
        outcome = train(str(path), promote=False)
    assert outcome.version.spec["training"]["learning_rate"] == 2e-5
    mlflow = factory.mlflow()
    assert len(mlflow.search_runs([mlflow.get_experiment_by_name("intent").experiment_id])) == 1
