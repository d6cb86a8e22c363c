"""Where a version in the making lives until it is registered; one process works on it, and the next goes on from it.

<home>/checkpoints/<version key>/run-0/    checkpoints of the run, and its key in MLflow; run-1, ... of its repairs
"""

from __future__ import annotations

import fcntl
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.keep import sole, turn_to_make
from flows.progress import voice
from flows.wiring import Home
from registry.attempts import LEASE
from registry.durable import make_folders, replace_file
from registry.failpoint import failpoint
from registry.records import LeaseRecord
from tasks.errors import GateRefused

if TYPE_CHECKING:
    from tasks.training.checkpoint import Checkpoints

FORGOTTEN_AFTER_DAYS = 30


@dataclass(frozen=True)
class Workplace:
    """The folder of one version in the making. `key` is its version key; it is registered under the lease."""

    folder: Path
    key: str
    lease: LeaseRecord | None = None

    def checkpoints(self, attempt: int = 0) -> Checkpoints:
        """The checkpoints of the run, or of one of its repairs."""
        from tasks.training.checkpoint import Checkpoints

        return Checkpoints(self._of(attempt), f"{self.key}/{attempt}", reached=failpoint)

    def run_key(self, attempt: int = 0) -> str:
        """The run's key in MLflow: drawn once, so that a run that goes on is the same run there."""
        path = self._of(attempt) / "run.txt"
        if not path.is_file():
            make_folders(path.parent)
            replace_file(path, uuid.uuid4().hex.encode())
        return path.read_text(encoding="utf-8")

    def _of(self, attempt: int) -> Path:
        return self.folder / f"run-{attempt}"


@contextmanager
def working_on(home: Home, key: str) -> Iterator[Workplace]:
    """The workplace of a version, for one process at a time; another that wants the same version waits here.

    It is gone once the block has come to its end or a gate has refused what came of it; after anything else it stays,
    and the same command goes on from it. What nobody has come back to for a month goes too.
    """
    root = home.settings.home / "checkpoints"
    folder = root / key
    make_folders(root)
    _forget(old for old in root.iterdir() if old.name != key)
    while True:
        folder.mkdir(exist_ok=True)
        with open(folder / "lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                voice.say("  another process makes this very version; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "lock").exists():  # whoever held it came to the end and removed it
                continue
            finished = False
            try:
                with turn_to_make(home, key) as lease:
                    yield Workplace(folder, key, lease)
                finished = True
            except GateRefused:
                finished = True
                raise
            finally:
                if finished:
                    shutil.rmtree(folder, ignore_errors=True)
            return


@contextmanager
def ahead_on(home: Home, key: str) -> Iterator[Workplace | None]:
    """The workplace of a version, to do some of its work before whoever makes it; what is done there stays for that.

    None where another process makes the version: nothing here is worth waiting for.
    """
    folder = home.settings.home / "checkpoints" / key
    make_folders(folder)
    with open(folder / "lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        with sole(home, LEASE + key, why="the same version is being made", enough=lambda: True) as lease:
            yield Workplace(folder, key, lease) if lease and (folder / "lock").exists() else None


def _forget(folders: Iterable[Path]) -> None:
    """Remove what nobody holds and nobody has written to for a month."""
    for folder in folders:
        newest = max((path.stat().st_mtime for path in [folder, *folder.glob("run-*")]), default=0.0)
        if time.time() - newest < FORGOTTEN_AFTER_DAYS * 86400:
            continue
        with open(folder / "lock", "ab") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
