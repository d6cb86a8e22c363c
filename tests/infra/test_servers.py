"""The real thing, once: both servers, a worker and every deployment come up on free ports, and go again."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from infra.automations import SILENT_RUNS
from infra.deployments import declared
from infra.pools import GPU_LIMIT, POOL
from infra.running import lives, recorded
from infra.settings import load_settings

ROOT = Path(__file__).parents[2]
SECONDS = 300
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Served:
    home: Path
    environment: dict[str, str]
    prefect: str
    mlflow: str
    said: str

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return factory(self.environment, self.home.parent, *words)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The Prefect server's own API, without Prefect's client."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.prefect}/api{path}", data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


def factory(environment: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FACTORY_", "PREFECT_"))}
    environment = kept | {
        "FACTORY_HOME": str(folder / "home"),
        "FACTORY_PREFECT_PORT": str(ports[0]),
        "FACTORY_MLFLOW_PORT": str(ports[1]),
        "FACTORY_GPU_SLOTS": "2",
    }
    try:
        up = factory(environment, folder, "up", "--detach")
        assert up.returncode == 0, up.stdout + up.stderr
        prefect, mlflow = (f"http://127.0.0.1:{port}" for port in ports)
        yield Served(folder / "home", environment, prefect, mlflow, up.stdout + up.stderr)
    finally:
        factory(environment, folder, "down")


def test_every_deployment_of_the_file_stands_on_the_server_and_on_the_pool(served: Served) -> None:
    rows = served.ask("/deployments/filter", {})
    flows = {row["id"]: row["name"] for row in served.ask("/flows/filter", {})}
    names = {f"{flows[row['flow_id']]}/{row['name']}" for row in rows}
    assert names == set(declared(ROOT / "prefect.yaml"))
    assert {row["work_pool_name"] for row in rows} == {POOL}
    assert {row["enforce_parameter_schema"] for row in rows} == {True}


def test_the_accelerator_has_as_many_slots_as_the_settings_say(served: Served) -> None:
    assert served.ask(f"/v2/concurrency_limits/{GPU_LIMIT}")["limit"] == 2


def test_the_retrain_waits_for_drift_and_silent_runs_are_ended(served: Served) -> None:
    named = sorted(row["name"] for row in served.ask("/automations/filter", {}))
    assert named == ["merge again after a retrain", "retrain on drift", SILENT_RUNS]


def test_a_worker_takes_runs_from_the_pool(served: Served) -> None:
    workers = served.ask(f"/work_pools/{POOL}/workers/filter", {})
    assert [row["status"] for row in workers] == ["ONLINE"]


def test_the_pages_speak_to_their_own_server_and_to_no_other_site(served: Served) -> None:
    with urlopen(f"{served.prefect}/ui-settings", timeout=30) as answer:
        assert json.loads(answer.read())["api_url"] == f"{served.prefect}/api"
    foreign = Request(f"{served.prefect}/api/health", headers={"Origin": "https://elsewhere.example"})
    with urlopen(foreign, timeout=30) as answer:
        assert "access-control-allow-origin" not in {name.lower() for name in answer.headers}
    with urlopen(served.mlflow, timeout=30) as answer:
        assert b"<title>MLflow</title>" in answer.read()


def test_a_command_of_this_home_lands_on_its_servers(served: Served) -> None:
    found = load_settings(home=served.home)
    assert (found.prefect_api_url, found.mlflow_uri) == (f"{served.prefect}/api", served.mlflow)


def test_a_second_start_is_refused_and_changes_nothing(served: Served) -> None:
    before = recorded(served.home)
    again = served.command("up", "--detach")
    assert again.returncode == 6, again.stderr
    assert "E-ENV-013" in again.stderr
    assert recorded(served.home) == before


def test_stopping_leaves_no_process_no_port_and_no_record(served: Served) -> None:
    started = recorded(served.home)
    assert set(started) == {"prefect", "mlflow", "worker"}
    assert served.command("down").returncode == 0
    assert [name for name, process in started.items() if lives(process)] == []
    for url in (served.prefect, served.mlflow):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == errno.ECONNREFUSED
    assert recorded(served.home) == {}
