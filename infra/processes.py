"""Programs that run beside us: started as groups of their own, watched, and ended in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from urllib.request import ProxyHandler, build_opener

from infra import running
from infra.errors import Problem, ServerDown
from infra.redaction import redacted
from infra.running import Process

Say = Callable[[str], None]

STOP_SECONDS = 20.0  # between asking a program to end and making it
LOOK_SECONDS = 0.25
TELL_SECONDS = 10.0
ENDED = "E-ENV-011"
SILENT = "E-ENV-012"


class Stop(Exception):
    """Ctrl-C or SIGTERM."""


@dataclass(frozen=True)
class Program:
    """`python -m module`, and what it needs to know. A server answers GET `health` with 200 once it is up."""

    name: str
    title: str
    module: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    health: str = ""


@dataclass(frozen=True)
class Started:
    program: Program
    popen: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises ServerDown if it has ended."""
        code = self.popen.poll()
        if code is not None:
            wrong = f"ended with exit code {code}: {self.last_words()}"
            raise ServerDown(Problem(ENDED, self.program.title, wrong, f"read {self.log}"))

    def wait(self, there: Callable[[], bool], seconds: float, say: Say) -> None:
        """Until it is there, with a line every TELL_SECONDS. Raises ServerDown if it ends or the time runs out."""
        began = told = time.monotonic()
        while not there():
            self.check()
            now = time.monotonic()
            if now - began > seconds:
                wrong = f"is not there after {seconds:.0f} s: {self.last_words()}"
                remedy = f"read {self.log}, or raise FACTORY_START_SECONDS"
                raise ServerDown(Problem(SILENT, self.program.title, wrong, remedy))
            if now - told > TELL_SECONDS:
                told = now
                say(f"{self.program.title:14} not yet, {now - began:.0f} s of at most {seconds:.0f} s")
            time.sleep(LOOK_SECONDS)

    def last_words(self) -> str:
        """The last line that it wrote, without secrets."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return redacted(lines[-1].strip()) if lines else "it wrote nothing"


class Group:
    """The programs of one home, in the order of their start; `servers.json` always says which they are."""

    def __init__(self, home: Path, workdir: Path, *, supervised: bool) -> None:
        self.home, self.workdir = home, workdir
        self.started: list[Started] = []
        self._noted = {"supervisor": running.this_process()} if supervised else {}

    def start(self, program: Program, environment: Mapping[str, str]) -> Started:
        """In a process group of its own, so that Ctrl-C reaches us first and we end the programs in order."""
        log = self.home / "logs" / f"{program.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            popen = subprocess.Popen(  # noqa: S603 - our interpreter, a module named in our code, no shell
                [sys.executable, "-m", *program.module],
                cwd=self.workdir,
                env={**os.environ, **environment, **program.environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        begun = Started(program, popen, log)
        self.started.append(begun)
        self._noted[program.name] = Process(popen.pid, running.born(popen.pid), program.url)
        running.record(self.home, self._noted)
        return begun

    def watch(self) -> None:
        """Stay until one of them ends (ServerDown) or a signal comes (Stop)."""
        while True:
            for begun in self.started:
                begun.check()
            time.sleep(LOOK_SECONDS)

    def stop(self, say: Say) -> None:
        """The last started first; then the home has no servers."""
        for begun in reversed(self.started):
            end(begun.popen.pid, lambda popen=begun.popen: popen.poll() is not None)  # type: ignore[misc]
            say(f"{begun.program.title:14} stopped")
        running.forget(self.home)


def end(group: int, leader_is_gone: Callable[[], bool]) -> None:
    """End a process group: asked first, made to after STOP_SECONDS. The leader's death alone is not enough."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if not _signalled(group, kind):
            return
        if until(lambda: leader_is_gone() and not _signalled(group, 0), STOP_SECONDS):
            return


def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it came to hold within the time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def healthy(url: str, seconds: float = 2.0) -> bool:
    """Whether a GET answers 200 within the time; past any proxy, for this is our own machine."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stop, also where the shell that started us in the background has them ignored."""

    def stop_here(_number: int, _frame: FrameType | None) -> None:
        raise Stop

    before = {kind: signal.signal(kind, stop_here) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _signalled(group: int, kind: int) -> bool:
    try:
        os.killpg(group, kind)
    except (ProcessLookupError, PermissionError):
        return False
    return True
