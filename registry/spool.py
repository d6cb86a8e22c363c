"""What a run has to say, on local disk before anyone is asked to listen.

<key>/events.jsonl    one event a line, appended; survives the death of the process
<key>/position.json   how far MLflow knows it, and the id of the run there
<key>/refused.jsonl   what MLflow will never take, with its reason
<key>/files/          figures and texts
<key>/lock            held by the process that delivers
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from threading import Lock
from typing import IO, Any, NamedTuple, Self


class Position(NamedTuple):
    """Bytes of events.jsonl that are delivered, and the run's id in MLflow once it is there."""

    offset: int = 0
    run_id: str | None = None
    finished: bool = False


class Journal:
    """One run's events. `append` takes some microseconds and no lock but its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder.name
        self._writing = Lock()
        self._lock: IO[bytes] | None = None
        self._events: RawIOBase | None = None

    @classmethod
    def create(cls, root: Path, key: str) -> Self:
        journal = cls(root / key)
        (journal.folder / "files").mkdir(parents=True)
        return journal

    @classmethod
    def reopen(cls, root: Path, key: str) -> Self:
        """The journal of a run that goes on, owned; as it was left, or a new one where all of it was delivered."""
        while True:
            journal = cls(root / key)
            (journal.folder / "files").mkdir(parents=True, exist_ok=True)
            if journal.own(wait=True):
                if (journal.folder / "lock").exists():  # else whoever held it delivered and removed it meanwhile
                    journal.cut_half_line()
                    return journal
                journal.disown()

    def own(self, *, wait: bool = False) -> bool:
        """Take the right to deliver this journal; False while another process, or another part of this one, has it."""
        try:
            lock = open(self.folder / "lock", "ab")  # noqa: SIM115 (held until `disown`)
        except FileNotFoundError:  # delivered and removed meanwhile
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self._lock = lock
        return True

    def disown(self) -> None:
        with self._writing:
            if self._events is not None:
                self._events.close()
                self._events = None
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # also for forked children, who hold the same lock
            self._lock.close()
            self._lock = None

    def append(self, kind: str, at_ms: int, **fields: Any) -> None:
        """Write one event behind the others; whole, or not at all after a crash (a half line is never read)."""
        line = json.dumps({"kind": kind, "at_ms": at_ms, **fields}, separators=(",", ":")).encode() + b"\n"
        with self._writing:
            if self._events is None:
                self._events = open(self.folder / "events.jsonl", "ab", buffering=0)  # noqa: SIM115 (held until `disown`)
            self._events.write(line)

    def attach(self, data: bytes) -> str:
        """Keep a file beside the events; returns its name there."""
        with self._writing:
            name = f"{len(list((self.folder / 'files').iterdir())):06d}"
            (self.folder / "files" / name).write_bytes(data)
        return name

    def events(self, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Events from `offset` on, each with the offset behind it.

        A line that is still being written is left out; one that a full disk cut short is stepped over.
        """
        try:
            file = open(self.folder / "events.jsonl", "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return
        with file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                yield event, offset

    def begun(self) -> bool:
        return (self.folder / "events.jsonl").exists()

    def ended(self) -> bool:
        """Whether the run said goodbye; one that did not was killed."""
        kinds = [event["kind"] for event, _ in self.events(0) if event["kind"] in ("begin", "end")]
        return kinds[-1:] == ["end"]  # a run that went on has begun again

    def last_steps(self) -> dict[str, int]:
        """The highest step of each metric that has been said."""
        found: dict[str, int] = {}
        for event, _ in self.events(0):
            for point in event["points"] if event["kind"] == "points" else ():
                for name in point.keys() - {"step"}:
                    found[name] = max(found.get(name, 0), int(point["step"]))
        return found

    def cut_half_line(self) -> None:
        """Drop what a killed writer left unfinished, so that the next event begins on its own line."""
        path = self.folder / "events.jsonl"
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole[0]) + len(whole[1]))

    def last_ms(self) -> int:
        return max((event["at_ms"] for event, _ in self.events(0)), default=0)

    def position(self) -> Position:
        try:
            return Position(**json.loads((self.folder / "position.json").read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return Position()

    def move_to(self, position: Position) -> None:
        """Note how far it is delivered. Not fsynced: what is delivered twice is kept once."""
        temporary = self.folder / "position.tmp"
        temporary.write_text(json.dumps(position._asdict()))
        os.replace(temporary, self.folder / "position.json")

    def refuse(self, event: dict[str, Any], reason: str) -> None:
        with open(self.folder / "refused.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, "event": event}) + "\n")

    def refused(self) -> int:
        path = self.folder / "refused.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.disown()


def journals(root: Path) -> list[Journal]:
    """All journals under a folder, oldest first."""
    if not root.is_dir():
        return []
    folders = [folder for folder in root.iterdir() if folder.is_dir()]
    return [Journal(folder) for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime_ns)]
