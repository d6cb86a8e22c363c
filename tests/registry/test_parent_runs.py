"""A run is shown under the run that it belongs to, in whatever order MLflow hears of the two."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow_tables import sql

from registry.spool import Journal
from registry.tracking import Sender, Tracker


def linked(folder: Path) -> list[tuple]:
    """(name of a run, name of the run that it is shown under) as MLflow's tables have it; every run is there once."""
    names = sql(folder, "SELECT name FROM runs")
    assert len(names) == len(set(names))
    return sql(
        folder,
        "SELECT runs.name, above.name FROM tags JOIN runs USING (run_uuid) JOIN runs AS above"
        " ON above.run_uuid = tags.value WHERE tags.key = 'mlflow.parentRunId' ORDER BY runs.name",
    )


def test_a_repair_is_shown_under_the_run_that_it_repairs(tracker: Tracker, mlflow_folder: Path) -> None:
    with tracker.run(name="first", experiment="e", key="first"):
        pass
    with tracker.run(name="repair", experiment="e", key="second", parent="first"):
        pass
    assert linked(mlflow_folder) == [("repair", "first")]


def test_a_run_is_shown_under_one_that_mlflow_hears_of_later(
    tracker: Tracker, mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender of the upper run comes late, as on a busy machine."""
    start, late = Sender.start, []
    monkeypatch.setattr(Sender, "start", lambda sender: start(sender) if late else late.append(sender))
    with tracker.run(name="above", experiment="e", key="above"):
        for name in ("one", "two"):
            with tracker.run(name=name, experiment="e", key=name, parent="above"):
                pass
        start(late[0])
    assert linked(mlflow_folder) == [("one", "above"), ("two", "above")]
    assert sql(mlflow_folder, "SELECT DISTINCT status FROM runs") == [("FINISHED",)]


def test_what_a_killed_process_left_is_linked_in_whatever_order_it_is_sent(
    tracker: Tracker, mlflow_folder: Path
) -> None:
    for key, above in (("c", None), ("b", "c"), ("a", "b")):
        journal = Journal.create(tracker.spool, key)
        journal.append("begin", 1, name=key, experiment="e", tags={}, parent=above)
    assert tracker.deliver().waiting == 0
    assert linked(mlflow_folder) == [("a", "b"), ("b", "c")]
