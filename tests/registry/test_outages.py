"""C15: a real MLflow that is killed, slow, wrong or silent during a run costs training nothing and loses nothing."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.request import urlopen

import pytest

from registry.tracking import Tracker

STEPS, STEP_SECONDS = 90, 0.01


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """`mlflow server` as people run it, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


class Between(BaseHTTPRequestHandler):
    """A proxy in front of it with a switch: pass, 500, slow, hang."""

    def answer(self) -> None:
        mode = self.server.mode  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if mode == "hang":
            self.server.free.wait(60)  # type: ignore[attr-defined]
            return
        if mode == "slow":
            time.sleep(1.0)
        if mode == "500":
            self.reply(500, b"oops", "text/plain")
            return
        line = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)  # type: ignore[attr-defined]
        try:
            line.request(self.command, self.path, body or None, {"Content-Type": "application/json"})
            said = line.getresponse()
            self.reply(said.status, said.read(), said.headers.get("Content-Type", "application/json"))
        except OSError:
            self.close_connection = True
        finally:
            line.close()

    def reply(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    server = MlflowServer(folder)
    yield server
    server.kill()


@pytest.fixture
def between(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Between)
    proxy.daemon_threads = True
    proxy.mode, proxy.free, proxy.behind = "pass", Event(), mlflow_server.port  # type: ignore[attr-defined]
    Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
    yield proxy
    proxy.free.set()  # type: ignore[attr-defined]
    proxy.shutdown()
    proxy.server_close()


@pytest.mark.parametrize("fault", ["500", "slow", "hang", "killed"])
def test_training_goes_on_at_its_pace_and_every_metric_arrives_once(
    mlflow_server: MlflowServer, between: ThreadingHTTPServer, tmp_path: Path, fault: str
) -> None:
    """A third of the run with a healthy server, a third with the fault, a third with a healthy one again."""
    tracker = Tracker(
        f"http://127.0.0.1:{between.server_port}", folder=tmp_path, interval_seconds=0.05, patience_seconds=1.0
    )
    tracker.client()
    telling = 0.0
    with tracker.run(name=fault, experiment="outages", params={"rank": 16}) as run:
        began = time.perf_counter()
        for step in range(1, STEPS + 1):
            if step == STEPS // 3:
                mlflow_server.kill() if fault == "killed" else setattr(between, "mode", fault)
            if step == 2 * STEPS // 3 and fault != "killed":
                between.mode = "pass"  # type: ignore[attr-defined]
                between.free.set()  # type: ignore[attr-defined]
            time.sleep(STEP_SECONDS)  # the step of a model
            told = time.perf_counter()
            run.log_steps([{"step": step, "loss": 1 / step}])
            telling += time.perf_counter() - told
        whole = time.perf_counter() - began
    assert telling < 0.05 * whole, f"{telling:.3f} s of {whole:.3f} s were spent on telling MLflow"
    if fault == "killed":
        mlflow_server.start()
    deadline = time.monotonic() + 60
    while any(tracker.spool.iterdir()) and time.monotonic() < deadline:
        tracker.deliver()
    assert list(tracker.spool.iterdir()) == []
    with sqlite3.connect(mlflow_server.folder / "mlflow.db", timeout=30) as connection:
        query = "SELECT step, value FROM metrics JOIN runs USING (run_uuid) WHERE key = 'loss' AND name = ?"
        found = connection.execute(query, [fault]).fetchall()
    assert sorted(found) == [(step, 1 / step) for step in range(1, STEPS + 1)]
