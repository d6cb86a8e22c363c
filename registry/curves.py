"""The curve of a run, as MLflow remembers it: metric points by name, in order of steps."""

from __future__ import annotations

import re
from collections.abc import Mapping

from registry.errors import Problem, Unknown
from registry.mlflow_access import run_of, saying_when_it_is_down
from registry.tracking import Tracker

Points = Mapping[str, tuple[tuple[int, float], ...]]
RUN_ID = re.compile(r"^[0-9a-f]{32}$")


def recorded_points(tracker: Tracker, run: str) -> tuple[str, Points]:
    """(name, points per metric) of a run by the factory's key for it, or by MLflow's id.

    Raises:
        Unknown: MLflow does not know it.
        DependencyDown: MLflow does not answer.
    """
    if not RUN_ID.match(run):
        raise Unknown(Problem("E-MLFLOW-003", run[:60], "is no run", "copy the 32 characters of a run's id"))
    tracker.deliver()  # what the journals hold belongs to the curve
    mlflow = tracker.client()
    with saying_when_it_is_down(tracker.uri):
        found = run_of(mlflow, run)
        if found is None:
            from mlflow.exceptions import MlflowException

            try:
                found = mlflow.get_run(run)
            except MlflowException:
                remedy = "`factory show NAME` says what is registered"
                raise Unknown(Problem("E-MLFLOW-003", run, "is not in MLflow", remedy)) from None
        history = {name: mlflow.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    points = {name: tuple(sorted({(p.step, p.value) for p in told})) for name, told in history.items()}
    return str(found.info.run_name), points
