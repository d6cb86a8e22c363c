from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from flows.abreast import AT_ONCE, FEW_ROWS, those_on_one_base, those_that_fit
from flows.teach import Unfit
from flows.together import raise_together
from tasks.errors import DataRefused, GateRefused
from tasks.memory import MemoryPlan
from tasks.specs import AdapterSpec
from tasks.training.diagnosis import Finding


def test_adapters_of_one_base_share_one_loaded_base(fleet: Any) -> None:
    assert fleet.loads == 1


def test_one_bad_spec_stops_nobody_and_is_told_at_the_end(factory: Any, fleet: Any) -> None:
    trained = factory.sql(
        "SELECT name, number FROM versions WHERE name IN ('intent', 'stale', 'tone', 'topic') AND number = 1"
    )
    assert sorted(trained) == [("intent", 1), ("tone", 1), ("topic", 1)]
    assert all("alike.jsonl" in line for line in fleet.refused.lines())
    assert fleet.refused.exit_code == 3


def test_what_was_made_before_costs_nothing(fleet: Any) -> None:
    assert fleet.before["versions"] + 2 == fleet.after["versions"]  # tone and topic; intent was there


def test_a_spec_that_cannot_be_read_is_refused_before_the_first_is_trained(
    factory: Any, fleet: Any, desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.training.loop.train_adapter", lambda *_, **__: pytest.fail("one was trained"))
    new = factory.spec(desk["intent"], "never trained", seed=77)
    said = factory.run("fleet", new, factory.spec(desk["tone"], "misspelt", trainin__steps=3))
    assert said.code == 2
    assert "misspelt.yaml" in said.err
    assert "did you mean 'training'?" in said.err


def test_a_fleet_with_a_version_that_fails_its_gates_ends_with_that(factory: Any, hasty: Any) -> None:
    """Nothing is trained for it: the version is there, and is judged again from the ledger."""
    said = factory.run("--quiet", "fleet", factory.folder / "intent.yaml", factory.folder / "hasty 5.yaml")
    assert said.code == 5
    assert {line.partition(":")[0] for line in said.lines} == {"E-GATE-001 intent"}
    assert factory.sql("SELECT number FROM promotions WHERE name = 'intent'") == [(1,)]


def test_only_what_may_share_passes_by_its_spec_is_tried_and_only_with_its_like() -> None:
    few = {"batch_size": FEW_ROWS}
    shares: dict[str, dict[str, Any]] = {
        "plain": {},
        "ranked": {"method": {"name": "adalora", "rank": 4}},
        "other base": {"base": {"model": "/another"}},
        "dora": {"method": {"name": "dora"}},
        "no update": {"method": {"name": "ia3"}},
        "shy": {"resources": {"together": "never"}},
        "team": {"resources": {"processes": 2}},
        "recomputing": {"training": {"gradient_checkpointing": True, **few}},
        "many rows": {"training": {"batch_size": 16}},
        "in pieces": {"training": {"batch_size": 16, "micro_batch": 4}},
        "fewer threads": {"resources": {"threads": 1}},
    }
    data = {"source": "/rows.jsonl", "prompt": "{text}", "completion": "{label}"}
    specs = []
    for name, changes in shares.items():
        tree = {
            "task": name.replace(" ", "-"),
            "kind": "generation",
            "base": {"model": "/base"},
            "data": data,
            "training": few,
            **changes,
        }
        specs.append(AdapterSpec.model_validate(tree))
    classes = {
        "task": "sorted",
        "kind": "classification",
        "base": {"model": "/base"},
        "data": {"source": "/rows.jsonl"},
    }
    specs.append(AdapterSpec.model_validate(classes))
    assert [[spec.task for spec in group] for group in those_on_one_base(specs)] == [["plain", "ranked", "in-pieces"]]


def test_as_many_go_together_as_have_room_beside_one_base() -> None:
    def asked(above: int) -> Any:
        causes = {"weights in 32 bit": 100, "activations": above}
        return SimpleNamespace(
            plan=MemoryPlan(causes, available_bytes=200, trainable=1, parameters=1, micro_batch=1, tokens=1)
        )

    def sizes(*above: int) -> list[list[int]]:
        return [[one.plan.causes["activations"] for one in crowd] for crowd in those_that_fit([*map(asked, above)])]

    assert sizes(40, 60) == [[40, 60]]
    assert sizes(40, 61) == []
    assert sizes(90, 40, 50, 20, 30) == [[40, 50], [20, 30]]
    assert [len(crowd) for crowd in sizes(*[1] * 19)] == [AT_ONCE, AT_ONCE, 3]


STEPS = 24


@contextmanager
def told_after(passes: int) -> Iterator[Callable[[], bool]]:
    """SIGTERM, heard before one of the passes."""
    turns = count()
    yield lambda: next(turns) >= passes


def test_those_of_one_base_share_passes_and_are_registered_as_in_turn_also_after_a_stop(
    new_factory: Any, desk: Any, monkeypatch: pytest.MonkeyPatch, at_its_word: None
) -> None:
    """tone and topic, while intent keeps to itself."""
    from tasks.training.several import Several

    factory, several, passes = new_factory(), Several.backward, []

    def counted(self: Several, parts: Any, chances: Any) -> list[float]:
        passes.append(len(parts))
        return several(self, parts, chances)

    monkeypatch.setattr(Several, "backward", counted)
    monkeypatch.setattr("flows.abreast.FEW_ROWS", 32)
    monkeypatch.setattr("tasks.training.together.WORTH", 0.0)  # whatever the clock says
    monkeypatch.setattr("tasks.training.together.ENOUGH_STEPS", STEPS)
    how = {"training__steps": STEPS, "training__checkpoint_minutes": 60, "method__dropout": 0.1}
    specs = [factory.spec(desk[name], **how) for name in ("tone", "topic")]
    specs.append(factory.spec(desk["intent"], resources__together="never", **how))
    with monkeypatch.context() as patch:
        patch.setattr("tasks.training.interruption.told_to_stop", lambda: told_after(12))
        halted = factory.run("fleet", *specs)
    assert halted.code == 143, halted.err
    assert "tone, topic: in one pass over their base, where that is faster" in halted.lines
    assert [line for line in halted.lines if line.startswith("  topic: ") and "; plan " in line]
    told = [line for line in halted.lines if line.startswith("E-TRAIN-003")]
    assert [line.split(" -> ")[0] for line in told] == [
        f"E-TRAIN-003 {task}: was told to stop after step 12 of {STEPS}, a checkpoint holds it"
        for task in ("tone", "topic")
    ]
    assert factory.sql("SELECT * FROM versions") == []
    assert factory.litter() == []

    said = factory.run("fleet", *specs)
    assert said.code == 0, said.err
    assert passes == [2] * STEPS
    assert f"resumed from step 12 of {STEPS}" in said.err
    assert f"resumed from step {STEPS} of {STEPS}" in said.err
    assert list((factory.home / "checkpoints").iterdir()) == []
    assert factory.litter() == []
    served = factory.sql("SELECT name, number FROM promotions ORDER BY name")
    assert served == [("intent", 1), ("tone", 1), ("topic", 1)]
    edges = factory.sql("SELECT name, role, dataset, edges.base FROM edges JOIN versions ON versions.id = child_id")
    datasets = dict(factory.sql("SELECT task, digest FROM datasets"))
    lineage = {task: {(role, data) for name, role, data, _ in edges if name == task} for task in datasets}
    assert len(datasets) == 3
    for task in datasets:  # its own rows, and otherwise what the one has that was trained in its turn
        swapped = {(role, datasets["intent"] if data == datasets[task] else data) for role, data in lineage[task]}
        assert swapped == lineage["intent"]
    attempts = factory.sql("SELECT state FROM attempts")
    assert attempts == [("done",)] * 3
    mlflow = factory.mlflow()
    for task in ("intent", "tone", "topic"):
        (run,) = mlflow.search_runs([mlflow.get_experiment_by_name(task).experiment_id])
        assert run.info.status == "FINISHED"
        assert ("trained together" in run.data.tags["factory.compute"]) == (task != "intent")
        points = mlflow.get_metric_history(run.info.run_id, "loss")
        assert sorted(point.step for point in points) == list(range(1, STEPS + 1))
        assert (
            task == "intent" or "planned_above_start_bytes" not in run.data.metrics
        )  # resumed: not a whole run's peak


def test_refusals_of_several_are_told_together_under_the_first_one_s_exit_code() -> None:
    """A run that came to nothing is a refusal that knows more than its problems."""
    findings = [Finding("diverged", "loss 9 at the end", "lower the rate", fatal=True)]
    others = [DataRefused.one("E-DATA-001", "rows", "empty", "add rows"), Unfit.of("second", findings, 2.0)]
    with pytest.raises(GateRefused) as told:
        raise_together([Unfit.of("first", findings, 1.0), *others])
    assert [problem.where for problem in told.value.problems] == ["first", "rows", "second"]
    assert told.value.exit_code == 5
