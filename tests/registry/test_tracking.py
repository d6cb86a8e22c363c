"""Training says what it has to say in microseconds; MLflow hears all of it, once, sooner or later."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from mlflow_tables import sql

from registry.errors import DependencyDown
from registry.spool import Journal
from registry.tracking import Tracker

FORK = multiprocessing.get_context("fork")


def steps(first: int, last: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / step, "rate": 1e-4} for step in range(first, last + 1)]


def points(folder: Path) -> dict[int, float]:
    """step -> loss; fails if a step is there twice."""
    rows = sql(folder, "SELECT step, value FROM metrics WHERE key = 'loss'")
    assert len(rows) == len({step for step, _ in rows})
    return dict(rows)


class Faults(BaseHTTPRequestHandler):
    """A server on MLflow's port that is not well. `server.mode` says how; `server.free` ends the hanging."""

    def answer(self) -> None:
        if self.server.mode == "hang":  # type: ignore[attr-defined]
            self.server.free.wait(30)  # type: ignore[attr-defined]
            return
        code, body = {"500": (500, b"oops"), "429": (429, b"slow"), "nonsense": (200, b"<html>")}[self.server.mode]  # type: ignore[attr-defined]
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def sick_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a MLflow that is down, hangs, or answers wrongly."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faults)
    server.daemon_threads = True
    server.mode, server.free = request.param, Event()  # type: ignore[attr-defined]
    address = f"http://127.0.0.1:{server.server_port}"
    if request.param == "closed":
        server.server_close()
        yield address
        return
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield address
    server.free.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_what_a_run_says_is_what_mlflow_shows(tracker, mlflow_folder):
    with tracker.run(name="r16", experiment="triage", tags={"a": 1}, params={"rank": 16}) as run:
        run.log_steps(steps(1, 5))
        run.log_metrics({"test/exact_match": 0.75}, step=5)
        run.log_params({"late": [1, 2]})
        run.log_tags({"verdict": "healthy"})
        run.log_figure("loss.svg", b"<svg/>")
        run.log_text("notes/why.md", "because")
        run.log_dataset("triage rows", "d" * 64, "rows.jsonl", "training")
    client = tracker.client()
    found = client.get_run(run.id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "r16")
    assert client.get_experiment(found.info.experiment_id).name == "triage"
    assert found.data.params == {"rank": "16", "late": "[1, 2]"}
    assert {key: found.data.tags[key] for key in ("a", "verdict", "factory.run")} == {
        "a": "1", "verdict": "healthy", "factory.run": run.key,
    }  # fmt: skip
    assert points(mlflow_folder) == {point["step"]: point["loss"] for point in steps(1, 5)}
    assert found.data.metrics["test/exact_match"] == 0.75
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.tags[0].value) == ("triage rows", "d" * 36, "training")
    place = mlflow_folder / "artifacts" / "triage" / run.id / "artifacts"
    files = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert files == {"figures/loss.svg": b"<svg/>", "notes/why.md": b"because"}
    assert list(tracker.spool.iterdir()) == []


def test_points_travel_in_batches_of_at_most_a_thousand(tracker, mlflow_folder, monkeypatch):
    client, sizes = tracker.client(), []
    real = client.log_batch
    monkeypatch.setattr(
        client, "log_batch", lambda run, **what: sizes.append(len(what["metrics"])) or real(run, **what)
    )
    monkeypatch.setattr(tracker, "_interval_seconds", 30.0)
    with tracker.run(name="long", experiment="triage") as run:
        for step in range(1, 601):
            run.log_steps([{"step": step, "loss": 1 / step, "rate": 0.1}])
        run.log_steps(steps(601, 1200))
    assert sum(sizes) == 2400
    assert max(sizes) <= 1000
    assert len(sizes) <= 5
    assert len(points(mlflow_folder)) == 1200


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_ends_as_its_training_ended_and_the_error_passes_through(tracker, error, status):
    with pytest.raises(error), tracker.run(name="bad", experiment="triage") as run:
        raise error("stop")
    assert tracker.client().get_run(run.id).info.status == status


@pytest.mark.parametrize("sick_server", ["closed", "hang", "500", "429", "nonsense"], indirect=True)
def test_an_outage_costs_training_nothing_and_loses_and_doubles_nothing(sick_server, mlflow_folder):
    sick = Tracker(sick_server, folder=mlflow_folder, interval_seconds=0.01, patience_seconds=0.5)
    with sick.run(name="brave", experiment="triage", params={"rank": 16}) as run:
        began = time.monotonic()
        for step in range(1, 501):
            run.log_steps(steps(step, step))
        run.log_figure("loss.svg", b"<svg/>")
        spent_seconds = time.monotonic() - began
    assert spent_seconds < 1.0
    assert run.id is None
    well = Tracker(f"sqlite:///{mlflow_folder}/mlflow.db", folder=mlflow_folder)
    deadline = time.monotonic() + 20
    while (delivered := well.deliver()).runs == 0 and time.monotonic() < deadline:
        Event().wait(0.05)  # the sick server's last request still holds the journal
    assert (delivered.runs, delivered.waiting, delivered.problem) == (1, 0, None)
    assert points(mlflow_folder) == {point["step"]: point["loss"] for point in steps(1, 500)}
    assert sql(mlflow_folder, "SELECT status FROM runs") == [("FINISHED",)]
    assert well.deliver() == (0, 0, 0, None)


@pytest.mark.parametrize("sick_server", ["closed"], indirect=True)
def test_a_journal_waits_for_as_long_as_it_takes(sick_server, mlflow_folder):
    sick = Tracker(sick_server.replace("//", "//me:CANARY@"), folder=mlflow_folder, patience_seconds=0.5)
    with sick.run(name="brave", experiment="triage") as run:
        run.log_steps(steps(1, 3))
    for _ in range(2):
        delivered = sick.deliver()
        assert (delivered.runs, delivered.waiting) == (0, 1)
        assert delivered.problem.code == "E-MLFLOW-001"
        assert "CANARY" not in str(delivered.problem)
    assert len(list(sick.spool.iterdir())) == 1


def test_answers_that_get_lost_double_nothing(tracker, mlflow_folder, monkeypatch):
    """Every second call does its work and then fails, as when the line breaks before the answer."""
    client, turn = tracker.client(), iter(range(10_000))

    def losing_answers(real):
        def call(*given, **named):
            result = real(*given, **named)
            if next(turn) % 2 == 0:
                raise ConnectionResetError("the answer was lost")
            return result

        return call

    for name in ("create_run", "log_batch", "log_artifact", "log_inputs", "set_terminated"):
        monkeypatch.setattr(client, name, losing_answers(getattr(client, name)))
    with tracker.run(name="flaky", experiment="triage", params={"rank": 16}) as run:
        run.log_steps(steps(1, 50))
        run.log_dataset("triage rows", "d" * 64, "rows.jsonl", "training")
        run.log_steps(steps(51, 100))
        run.log_figure("loss.svg", b"<svg/>")
    for _ in range(20):
        if not any(tracker.spool.iterdir()):
            break
        tracker.deliver()
    assert points(mlflow_folder) == {point["step"]: point["loss"] for point in steps(1, 100)}
    assert sql(mlflow_folder, "SELECT count(*) FROM runs") == [(1,)]
    assert sql(mlflow_folder, "SELECT count(*) FROM inputs") == [(1,)]
    assert sql(mlflow_folder, "SELECT status FROM runs") == [("FINISHED",)]


def die_after_saying(folder: Path, count: int) -> None:
    """In a child: say `count` points to a MLflow that is away, and be killed in the middle of the next line."""

    def work() -> None:
        sick = Tracker("http://127.0.0.1:9", folder=folder, interval_seconds=60)
        with sick.run(name="doomed", experiment="triage") as run:
            for first in range(1, count + 1, 100):
                run.log_steps(steps(first, first + 99))
            with open(next(sick.spool.iterdir()) / "events.jsonl", "ab") as file:
                file.write(b'{"kind":"points","at_ms":1,"poi')
            os.kill(os.getpid(), signal.SIGKILL)

    child = FORK.Process(target=work)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL


def test_a_killed_training_is_shown_as_killed_with_every_point_it_said(mlflow_folder, tracker):
    die_after_saying(mlflow_folder, 100)
    assert tracker.deliver().runs == 1
    assert len(points(mlflow_folder)) == 100
    assert sql(mlflow_folder, "SELECT status FROM runs") == [("KILLED",)]


def test_a_killed_delivery_is_finished_by_the_next_and_doubles_nothing(mlflow_folder, tracker):
    die_after_saying(mlflow_folder, 1500)
    for turn in (1, 2, 3):

        def work(turn: int = turn) -> None:
            os.environ["FACTORY_FAILPOINT"] = f"delivery.before_note=kill@{turn}"
            tracker.deliver()

        child = FORK.Process(target=work)
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    assert tracker.deliver().waiting == 0
    assert len(points(mlflow_folder)) == 1500
    assert sql(mlflow_folder, "SELECT count(*), max(status) FROM runs") == [(1, "KILLED")]


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path):
    journal = Journal.create(tmp_path, "key")
    journal.append("tags", 1, values={"a": "1"})
    path = journal.folder / "events.jsonl"
    whole = b'{"kind":"tags","at_ms":2,"values":{}}\n'
    with path.open("ab", buffering=0) as file:
        file.write(whole[:20])
        ((first, offset),) = journal.events(0)
        assert list(journal.events(offset)) == []
        file.write(whole[20:])
    assert [event["at_ms"] for event, _ in journal.events(offset)] == [2]
    assert first["at_ms"] == 1


def test_a_line_that_a_full_disk_cut_short_is_stepped_over(tmp_path):
    journal = Journal.create(tmp_path, "key")
    (journal.folder / "events.jsonl").write_bytes(b'{"kind":"tags","at_\n')
    journal.append("tags", 3, values={})
    assert [event["at_ms"] for event, _ in journal.events(0)] == [3]


def test_a_run_that_is_being_sent_is_left_alone_by_others(tracker, mlflow_folder):
    with tracker.run(name="alive", experiment="triage") as run:
        run.log_steps(steps(1, 3))
        assert Tracker(tracker.uri, folder=mlflow_folder).deliver() == (0, 0, 0, None)
    assert tracker.client().get_run(run.id).info.status == "FINISHED"


def test_what_mlflow_will_never_take_is_put_aside_and_holds_up_nothing(tracker, mlflow_folder, caplog):
    with tracker.run(name="odd", experiment="triage", params={"rank": 16}) as run:
        run.log_params({"rank": 17})  # MLflow's parameters are set once
        run.log_steps([{"step": 1, "loss": 1.0, "hits?": 2.0}])  # no name for MLflow, so it gets the nearest
        run.log_steps(steps(2, 3))
    assert set(points(mlflow_folder)) == {1, 2, 3}
    found = tracker.client().get_run(run.id)
    assert (found.info.status, found.data.metrics["hits_"], found.data.params) == ("FINISHED", 2.0, {"rank": "16"})
    refused = next(tracker.spool.iterdir()) / "refused.jsonl"
    assert len(refused.read_text().splitlines()) == 1
    assert tracker.deliver() == (0, 0, 0, None)


def test_a_full_disk_stops_the_journal_and_not_the_training(tracker, monkeypatch, caplog):
    with tracker.run(name="full", experiment="triage") as run:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Journal, "append", full)
        monkeypatch.setattr(Journal, "attach", full)
        for step in range(1, 20):
            run.log_steps(steps(step, step))
        run.log_figure("loss.svg", b"<svg/>")
        monkeypatch.undo()
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1


def test_numbers_that_are_none_are_still_points(tracker, mlflow_folder):
    with tracker.run(name="nan", experiment="triage") as run:
        run.log_steps([{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}])
    assert sql(mlflow_folder, "SELECT count(*) FROM metrics WHERE key = 'loss'") == [(2,)]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a/"])
def test_a_file_stays_inside_its_run(tracker, name):
    with tracker.run(name="odd", experiment="triage") as run, pytest.raises(ValueError, match="inside the run"):
        run.log_text(name, "x")


def test_an_experiment_that_was_deleted_by_hand_comes_back(tracker):
    with tracker.run(name="one", experiment="triage") as run:
        pass
    client = tracker.client()
    experiment = client.get_run(run.id).info.experiment_id
    client.delete_experiment(experiment)
    with tracker.run(name="two", experiment="triage") as run:
        pass
    assert client.get_run(run.id).info.experiment_id == experiment


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            "registry.errors, registry.records, registry.fingerprint, registry.store, registry.provenance",
            "sqlalchemy mlflow numpy",
        ),
        ("registry.ledger, registry.fsck, registry.tracking, registry.mirror", "mlflow alembic numpy pandas"),
    ],
)
def test_what_is_not_needed_is_not_imported(modules, absent):
    program = f"import sys, {modules}; print([name for name in {absent.split()!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_down_means_down_and_a_refusal_stays_a_refusal():
    from mlflow.exceptions import MlflowException

    from registry.mlflow_access import saying_when_it_is_down

    with pytest.raises(DependencyDown) as down, saying_when_it_is_down("http://x"):
        raise MlflowException("try later", error_code=8)
    assert down.value.exit_code == 7
    with pytest.raises(MlflowException), saying_when_it_is_down("http://x"):
        raise MlflowException("no", error_code=1000)


def half_a_run(tracker: Tracker, last: int) -> None:
    """A run that is killed after `last` steps; its journal is what it leaves."""
    if (child := os.fork()) == 0:
        with tracker.run(name="r", experiment="e", params={"rank": 8}, key="goes-on") as run:
            run.log_steps(steps(1, last))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("delivered_between", [False, True])
def test_a_run_that_goes_on_is_the_same_run_and_says_no_step_twice(
    tracker: Tracker, mlflow_folder: Path, delivered_between: bool
) -> None:
    half_a_run(tracker, 5)
    if delivered_between:
        tracker.deliver()
        assert sql(mlflow_folder, "SELECT status FROM runs") == [("KILLED",)]
    with tracker.run(name="r", experiment="e", params={"rank": 8}, key="goes-on") as run:
        run.log_steps([{**point, "validation_loss": 1.0} if point["step"] == 5 else point for point in steps(4, 9)])
        run.log_metrics({"seconds": 3.0})
    assert sql(mlflow_folder, "SELECT status FROM runs") == [("FINISHED",)]
    assert points(mlflow_folder) == {step: 1 / step for step in range(1, 10)}
    assert sql(mlflow_folder, "SELECT step, value FROM metrics WHERE key = 'validation_loss'") == [(5, 1.0)]
    assert not list(tracker.spool.iterdir())


def test_a_run_that_was_told_to_stop_is_killed_not_failed(tracker: Tracker, mlflow_folder: Path) -> None:
    class Told(Exception):
        exit_code = 143

    with pytest.raises(Told), tracker.run(name="r", experiment="e"):
        raise Told
    assert sql(mlflow_folder, "SELECT status FROM runs") == [("KILLED",)]
