from __future__ import annotations

from typing import Any

import pytest


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
