from __future__ import annotations

import errno
import json
import re
import signal

import pytest

from flows.cli import main
from flows.complaints import Terminated, as_json, lines_and_code, stop_behind
from infra.errors import SettingsRefused
from registry import errors as registry_errors
from tasks import errors as task_errors
from tasks.training.interruption import Stopped

LINE = re.compile(r"^E-[A-Z]+-\d{3} .+: .+ -> .+$")
PARTS = ("E-ENV-001", "somewhere", "is wrong", "mend it")


class ConnectTimeout(Exception):
    """As the HTTP library's own: no subclass of ConnectionError."""

    __module__ = "httpx"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (task_errors.SpecRefused.one(*PARTS), 2),
        (task_errors.DataRefused.one(*PARTS), 3),
        (task_errors.ArtifactRefused.one(*PARTS), 4),
        (task_errors.GateRefused.one(*PARTS), 5),
        (task_errors.DependencyDown.one(*PARTS), 7),
        (registry_errors.Unknown.one(*PARTS), 2),
        (registry_errors.IntegrityError.one(*PARTS), 4),
        (registry_errors.Conflict.one(*PARTS), 6),
        (registry_errors.NoSpace.one(*PARTS), 8),
        (SettingsRefused(task_errors.Problem(*PARTS)), 2),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 8),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 8),
        (OSError(errno.EIO, "Input/output error", "/data/x"), 7),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 7),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 5000), 2),
        (ConnectionRefusedError(111, "Connection refused"), 7),
        (ConnectTimeout("timed out"), 7),
        (ValueError("something\nof several lines"), 70),
        (KeyError(), 70),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_error_is_one_line_of_the_contract_and_a_code(error: BaseException, code: int) -> None:
    lines, found = lines_and_code(error)
    assert found == code
    assert len(lines) == 1
    assert LINE.match(lines[0])
    answer = json.loads(json.dumps(as_json(error)))
    assert (answer["ok"], answer["exit_code"]) == (False, code)
    (problem,) = answer["problems"]
    assert lines == [f"{problem['code']} {problem['where']}: {problem['wrong']} -> {problem['remedy']}"]


def test_a_person_who_stops_it_made_no_mistake() -> None:
    assert lines_and_code(KeyboardInterrupt()) == (["stopped; nothing half-done was kept"], 130)
    assert as_json(KeyboardInterrupt()) == {"ok": False, "exit_code": 130, "problems": []}
    assert lines_and_code(Terminated()) == (["stopped; nothing half-done was kept"], 143)


def test_a_command_that_has_said_all_is_not_commented() -> None:
    assert lines_and_code(SystemExit(7)) == ([], 7)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Terminated(), Stopped.one(*PARTS)], ids=type)
@pytest.mark.parametrize("error", [ConnectTimeout("gone"), ConnectionResetError(), RuntimeError()], ids=type)
def test_what_fails_while_a_stop_is_obeyed_does_not_hide_the_stop(
    stop: BaseException, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object, **__: object) -> None:
        try:
            try:
                raise stop
            except BaseException:
                raise error  # noqa: B904 # as a client does that says farewell to a server that is gone
        finally:
            error.__suppress_context__ = True

    monkeypatch.setattr("flows.cli.app", failing)
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    lines, code = lines_and_code(stop)
    assert (ended.value.code, capsys.readouterr().err.splitlines()) == (code, lines)


def test_a_chain_of_errors_that_bites_its_tail_ends() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__context__, second.__cause__ = second, first
    assert stop_behind(first) is first


def test_an_error_of_ours_is_told_whatever_was_heard_before_it() -> None:
    refused = task_errors.DataRefused.one(*PARTS)
    refused.__context__ = KeyboardInterrupt()
    assert stop_behind(refused) is refused


def test_a_sigterm_that_no_training_hears_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("flows.cli.app", lambda *words, **named: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert (ended.value.code, capsys.readouterr().err) == (143, "stopped; nothing half-done was kept\n")
    assert signal.getsignal(signal.SIGTERM) is before
