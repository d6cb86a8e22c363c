from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from infra.errors import ServerDown
from infra.processes import Group, Program, Started, Stop, end, healthy, stopped_by_signals, until
from infra.running import alive, born, lives, recorded, this_process

Say = Callable[[str], None]
SECONDS = 20.0  # far more than any of this takes


def quiet(_line: str) -> None:
    pass


def program(folder: Path, body: str, name: str = "served") -> Program:
    """A module of its own that runs the body."""
    (folder / f"{name}_module.py").write_text(body)
    return Program(name, name, (f"{name}_module",), {"PYTHONPATH": str(folder)})


def noted(begun: Started, word: str) -> Callable[[], bool]:
    return lambda: word in begun.log.read_text()


def test_programs_are_recorded_while_they_run_and_forgotten_once_stopped(tmp_path: Path) -> None:
    group = Group(tmp_path / "home", tmp_path, supervised=True)
    forever = "import time; print('up', flush=True); time.sleep(600)"
    begun = [group.start(program(tmp_path, forever, name), {}) for name in ("first", "second")]
    for one in begun:
        one.wait(noted(one, "up"), SECONDS, quiet)
    assert set(alive(tmp_path / "home")) == {"supervisor", "first", "second"}
    said: list[str] = []
    group.stop(said.append)
    assert [line.split()[0] for line in said] == ["second", "first"]
    assert recorded(tmp_path / "home") == {}
    assert [one.popen.poll() is None for one in begun] == [False, False]


def test_a_program_that_ends_is_told_with_its_last_words_and_without_its_secrets(tmp_path: Path) -> None:
    group = Group(tmp_path / "home", tmp_path, supervised=False)
    begun = group.start(program(tmp_path, "raise SystemExit('no route to postgresql://u:CANARY@db/x')"), {})
    with pytest.raises(ServerDown) as down:
        begun.wait(lambda: False, SECONDS, quiet)
    assert "exit code 1: no route to postgresql://u:***@db/x" in str(down.value)
    assert str(begun.log) in str(down.value)
    with pytest.raises(ServerDown):
        group.watch()
    group.stop(quiet)


def test_a_program_that_stays_silent_is_given_up_after_the_time(tmp_path: Path) -> None:
    group = Group(tmp_path / "home", tmp_path, supervised=False)
    begun = group.start(program(tmp_path, "import time; time.sleep(600)"), {})
    with pytest.raises(ServerDown, match="FACTORY_START_SECONDS"):
        begun.wait(lambda: False, 0.0, quiet)
    group.stop(quiet)


def test_ending_a_group_ends_the_children_of_a_leader_that_left_them(tmp_path: Path) -> None:
    child = "import time, os; print('child', os.getpid(), flush=True); time.sleep(600)"
    leader = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    group = Group(tmp_path / "home", tmp_path, supervised=False)
    begun = group.start(program(tmp_path, leader), {})
    assert until(lambda: begun.popen.poll() is not None and "child" in begun.log.read_text(), SECONDS)
    orphan = int(begun.log.read_text().split()[1])
    assert born(orphan)
    end(begun.popen.pid, lambda: True)
    assert until(lambda: not born(orphan), SECONDS)


def test_a_program_that_ignores_the_question_is_made_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.processes.STOP_SECONDS", 0.5)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    group = Group(tmp_path / "home", tmp_path, supervised=False)
    begun = group.start(program(tmp_path, stubborn), {})
    begun.wait(noted(begun, "up"), SECONDS, quiet)
    group.stop(quiet)
    assert begun.popen.wait(SECONDS) == -signal.SIGKILL


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_us_even_where_the_shell_had_it_ignored(kind: signal.Signals) -> None:
    before = signal.signal(kind, signal.SIG_IGN)
    try:
        with pytest.raises(Stop), stopped_by_signals():
            signal.raise_signal(kind)
        assert signal.getsignal(kind) is signal.SIG_IGN
    finally:
        signal.signal(kind, before)


def test_a_process_lives_until_it_ends_and_a_zombie_does_not_live() -> None:
    assert lives(this_process())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    try:
        assert until(lambda: born(ended.pid) == "", SECONDS)  # not waited for: it is a zombie now
    finally:
        ended.wait()


def test_only_an_answer_of_200_is_healthy(free_port: int) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert [healthy(f"{url}/{code}") for code in (200, 404, 503)] == [True, False, False]
        server.shutdown()
    assert not healthy(f"http://127.0.0.1:{free_port}")
