"""A rollback is a move in the ledger: in seconds, whatever else is down."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

from flows.rollback import PATIENCE_SECONDS
from registry.fsck import fsck

WITH_WHAT_WAS_LOADED = """
import sys
from flows.cli import main
try:
    main(["rollback", "triage"])
except SystemExit as ended:
    print(ended.code, "prefect" in sys.modules, "torch" in sys.modules)
"""


def busy_seconds() -> float:
    """Processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_champion_is_back_in_ten_seconds_beside_an_mlflow_that_never_answers_and_without_prefect(
    sqlite_workshop, tmp_path: Path
) -> None:
    ledger = sqlite_workshop.ledger
    for place, before in ((1, None), (2, 1)):
        ledger.register(sqlite_workshop.draft("triage", place))
        ledger.promote("triage", place, expected=before, decision={})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {
            "FACTORY_HOME": str(tmp_path / "home"),
            "FACTORY_MLFLOW_URI": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "FACTORY_PREFECT_API_URL": "http://127.0.0.1:9/api",
        }
        before = busy_seconds()
        done = subprocess.run(
            [sys.executable, "-c", WITH_WHAT_WAS_LOADED],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **settings},
            capture_output=True,
            text=True,
            timeout=60,
        )
        busy = busy_seconds() - before
    assert done.stdout.splitlines() == ["triage:1 is champion again (was 2)", "0 False False"], done.stderr
    assert "`factory reconcile` tells it" in done.stderr
    assert busy + PATIENCE_SECONDS < 10  # all that it computes and all that it waits, whatever else the machine does
    assert ledger.champion("triage").number == 1
    assert [(entry.topic, entry.number) for entry in ledger.pending()][-1] == ("promotion", 1)
    assert fsck(ledger, sqlite_workshop.store) == ()
