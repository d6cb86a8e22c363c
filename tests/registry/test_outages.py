"""C15: a real MLflow that is killed, slow, wrong or silent during a run costs training nothing and loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_training_goes_on_at_its_pace_and_every_metric_arrives_once(tiny_base: Path):
    """The benchmark in short: real steps, a third of each run with a healthy server, a third with the fault, and a
    third with a healthy one again. One pair says nothing about percents; what telling itself took is exact."""
    short = ["--pairs", "1", "--steps", "30", "--interval", "0.1", "--base", str(tiny_base)]
    done = subprocess.run(
        [sys.executable, "benchmarks/outages.py", *short],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["lost"], found["doubled"]) == (0, 0)
    faults = {kind: found["faults"][kind] for kind in ("none", "killed", "slow", "500", "hang")}
    assert all(fault["told_share"] < 0.05 for fault in faults.values()), faults
    assert all(fault["end_seconds"] < 20 for fault in faults.values()), faults
