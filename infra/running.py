"""Which servers of a home are running: `servers.json`, written by `factory up`, read by every other command.

A record counts only while its process lives and its port answers, so a file left behind by a power cut misleads nobody.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

ANSWER_SECONDS = 1.0
FILE = "servers.json"


@dataclass(frozen=True)
class Process:
    """Started by `factory up`. `born` tells it from a later process with the same number; `url` may be empty."""

    pid: int
    born: str
    url: str = ""


def born(pid: int) -> str:
    """When a process started, in the system's own words; '' if there is none (a zombie counts as none)."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name before may hold spaces
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]  # field 22 of proc(5): start time in clock ticks since boot
    import subprocess

    asked = ["ps", "-o", "lstart=", "-p", str(pid)]
    shown = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed program, a number
    return shown.stdout.strip()


def this_process() -> Process:
    return Process(os.getpid(), born(os.getpid()))


def answers(url: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether something accepts a connection there. The kernel accepts for a busy server too, so this is quick."""
    place = urlsplit(url)
    port = place.port or {"https": 443, "http": 80, "postgresql": 5432}.get(place.scheme.partition("+")[0])
    if not place.hostname or not port:
        return False
    try:
        with socket.create_connection((place.hostname, port), timeout=seconds):
            return True
    except OSError:
        return False


def lives(process: Process) -> bool:
    return bool(process.born) and born(process.pid) == process.born


def recorded(home: Path) -> dict[str, Process]:
    """What the last `factory up` of this home wrote, alive or not; empty if it wrote nothing that can be read."""
    try:
        rows = json.loads((home / FILE).read_text(encoding="utf-8"))
        return {name: Process(**row) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def alive(home: Path) -> dict[str, Process]:
    """The recorded servers that live and, where they have a URL, answer."""
    return {
        name: process
        for name, process in recorded(home).items()
        if lives(process) and (not process.url or answers(process.url))
    }


def record(home: Path, processes: Mapping[str, Process]) -> None:
    """Write the file so that a reader sees the old one or the new one, never half of it."""
    home.mkdir(parents=True, exist_ok=True)
    staged = home / f".{FILE}.{os.getpid()}"
    staged.write_text(json.dumps({name: asdict(process) for name, process in processes.items()}, indent=2) + "\n")
    staged.replace(home / FILE)


def forget(home: Path) -> None:
    (home / FILE).unlink(missing_ok=True)
