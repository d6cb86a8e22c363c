"""The command line in processes of its own: what loads, what an interruption leaves, and what an outage costs."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HEAVY = {"torch", "prefect", "mlflow", "transformers", "great_expectations", "peft", "bitsandbytes", "sqlalchemy"}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["train", "nope.yaml"], ["merge", "nope.yaml"]])
def test_help_and_a_bad_spec_load_nothing_heavy(words: list[str], tmp_path: Any) -> None:
    code = (
        "import sys, json\nfrom flows.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit as ended: code = ended.code\n"
        "print('\\n' + json.dumps([code, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert code == (0 if "--help" in words else 2)
    assert HEAVY & set(loaded) == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["schema"], ["--json", "down"]])
def test_a_reader_who_goes_away_hears_no_complaint(words: list[str], tmp_path: Path) -> None:
    """As in `factory schema | head -1`."""
    command = [sys.executable, "-m", "flows.cli", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "")


@pytest.fixture(scope="module")
def endless(new_factory: Callable[[], Any], desk: Any) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """A training without end in a home of its own; it loads its libraries while the tests before its own one run."""
    factory = new_factory()
    process = factory.start("train", factory.spec(desk["intent"], training__steps=100_000))
    yield factory, process
    process.kill()
    process.communicate()


def test_a_refusal_within_a_flow_is_its_line_and_no_other_word(factory: Any, intent: Any, endless: Any) -> None:
    """Through Prefect's engine, in a process whose console is what a person sees."""
    said = factory.finish(factory.start("promote", "nobody"))
    assert (said.code, said.out) == (2, "")
    assert [line.split(":")[0] for line in said.lines] == ["E-LEDGER-001 nobody"]


WITH_A_SERVER = """
from flows.commands.speaking import ready
ready()
from prefect.client.orchestration import get_client
from prefect.server.api.server import SubprocessASGIServer
import time
client = get_client(sync_client=True)
try:
    print(SubprocessASGIServer().server_process.pid, flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    time.sleep(3)  # as long as it would take a server that has heard it to end
    print(client.api_healthcheck(), flush=True)  # None where it is well
"""


def test_a_temporary_server_hears_no_ctrl_c_and_ends_with_its_command(tmp_path: Path) -> None:
    """Ctrl-C as a terminal sends it, to a command and all that it has started in its group; and a kill of it alone."""
    from infra.running import born

    kinds = (signal.SIGINT, signal.SIGKILL)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FACTORY_"))}
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler){WITH_A_SERVER}"],
            env={**variables, "FACTORY_HOME": str(tmp_path / kind.name)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for kind in kinds
    ]
    try:
        for kind, command in zip(kinds, commands, strict=True):
            assert command.stdout is not None
            server = int(command.stdout.readline())
            assert born(server)
            (os.killpg if kind is signal.SIGINT else os.kill)(command.pid, kind)
            said, _ = command.communicate(timeout=60)
            assert (command.returncode, said) == ((0, "None\n") if kind is signal.SIGINT else (-kind, ""))
            end = time.monotonic() + 30
            while born(server):
                assert time.monotonic() < end, "the server is still there"
                time.sleep(0.1)
    finally:
        for command in commands:
            command.kill()


def test_training_goes_on_without_mlflow_and_reconcile_delivers_later(
    new_factory: Callable[[], Any], desk: Any, at_its_word: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = new_factory()
    monkeypatch.setitem(factory.settings, "FACTORY_MLFLOW_URI", "http://me:hunter2@127.0.0.1:9")
    spec = factory.spec(desk["tone"], training__steps=6)
    said = factory.run("train", spec, "--no-promote")
    assert said.code == 0, said.err
    assert "MLflow is behind by 1 entries" in said.err
    assert "factory reconcile" in said.err
    assert "hunter2" not in said.err
    assert factory.sql("SELECT count(*) FROM outbox WHERE delivered_at IS NULL") == [(1,)]
    still = factory.run("--quiet", "reconcile")
    assert still.code == 7
    assert re.match(r"E-MLFLOW-001 http://127\.0\.0\.1:9: does not answer", still.lines[-1])

    monkeypatch.delitem(factory.settings, "FACTORY_MLFLOW_URI")
    assert factory.run("reconcile").code == 0
    assert factory.sql("SELECT count(*) FROM outbox WHERE delivered_at IS NULL") == [(0,)]
    mlflow = factory.mlflow()
    version = mlflow.get_model_version("tone", "1")
    points = mlflow.get_metric_history(version.run_id, "loss")
    assert sorted(point.step for point in points) == list(range(1, 7))
    assert mlflow.get_run(version.run_id).info.status == "FINISHED"
    assert json.loads(factory.run("--json", "reconcile").out)["result"]["changes"] == 0


def test_a_fleet_over_the_pool_needs_a_server_that_knows_the_deployment(factory: Any, intent: Any, desk: Any) -> None:
    from ruamel.yaml import YAML

    from flows.fleet import TRAIN

    said = factory.run("--quiet", "fleet", factory.spec(desk["intent"]), "--over-pool")
    assert said.code == 7
    assert said.lines[-1].startswith(f"E-PREFECT-003 {TRAIN}: ")
    root = next(path for path in Path(__file__).parents if (path / "prefect.yaml").is_file())
    deployments = {
        row["name"]: row["entrypoint"] for row in YAML(typ="safe").load(root / "prefect.yaml")["deployments"]
    }
    assert deployments["train"] == "flows.train.train"
    assert TRAIN == "train/train"


def test_ctrl_c_in_training_is_one_line_and_leaves_nothing_half_done(endless: Any) -> None:
    """MLflow knows the run as killed; the ledger knows the rows and the base that it looked at, and nothing else."""
    factory, process = endless
    spoken = list(itertools.takewhile(lambda line: "step 1/100000" not in line, process.stderr))
    process.send_signal(signal.SIGINT)
    said = factory.finish(process)
    assert said.code == 130, spoken
    assert said.lines[-1] == "stopped; nothing half-done was kept"
    assert "Traceback" not in said.err
    assert [line for line in said.lines if line.startswith("E-")] == []
    filled = {table for table, rows in factory.remembered().items() if rows}
    assert filled <= {"bases", "codes", "datasets", "splits", "runs", "attempts", "leases"}, (
        "what was tried, no version"
    )
    assert factory.litter() == []
    assert list((factory.home / "mlflow" / "spool").iterdir()) == []
    mlflow = factory.mlflow()
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("intent").experiment_id])
    assert run.info.status == "KILLED"
    assert mlflow.get_metric_history(run.info.run_id, "loss")
