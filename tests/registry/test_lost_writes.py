"""C20: the power goes off, and what was not synced is lost in any combination: no object is torn, none that was put is
lost.

One put is traced, and its system calls are replayed on a model of a disk that promises as little as POSIX does: bytes
are safe after fsync of their file, names after fsync of their folder, a rename happens whole or not at all, and all
else is there or not, in any order.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from registry.store import Store
from tests.registry.test_syscalls import folder, traced

__all__ = ["folder"]

CALLS = "openat,mkdir,rename,fsync,write,close"
LINE = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+= (-?\d+)")
DRAWS = int(os.environ.get("FACTORY_DRAWS", "25"))  # states drawn at random after each system call


@dataclass(eq=False)
class Node:
    """A file or a folder on the disk: what a program sees, and what is safe."""

    is_folder: bool
    written: int = 0  # bytes
    synced: int = 0
    entries: dict[str, Node] = field(default_factory=dict)  # safe names


@dataclass(eq=False)
class Change:
    """Names that appear and vanish together: of one new entry, or of both ends of a rename."""

    appear: tuple[Node, str, Node]
    vanish: tuple[Node, str] | None = None

    def touches(self, node: Node) -> bool:
        return node is self.appear[0] or (self.vanish is not None and node is self.vanish[0])

    def apply(self) -> None:
        if self.vanish is not None:
            self.vanish[0].entries.pop(self.vanish[1], None)
        place, name, node = self.appear
        place.entries[name] = node


class Disk:
    """Replays system calls below one folder that is safe from the start."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Node(True)
        self.seen: dict[Path, Node] = {root: self.top}
        self.open: dict[int, Node] = {}
        self.pending: list[Change] = []
        self.files: list[Node] = []  # in the order of their creation

    def does(self, call: str, arguments: str, result: int) -> bool:
        """One call; whether it concerned the disk."""
        paths = [Path(found) for found in re.findall(r'"([^"]*)"', arguments)]
        if call in ("openat", "mkdir", "rename") and not (paths and paths[0].is_relative_to(self.root)):
            return False
        if call == "mkdir" and result == 0:
            self._new(paths[0], Node(True))
        elif call == "openat" and result >= 0:
            if paths[0] not in self.seen:
                if "O_CREAT" not in arguments:
                    return False
                self._new(paths[0], Node(False))
            self.open[result] = self.seen[paths[0]]
        elif call == "rename" and result == 0:
            old, new = paths
            self.pending.append(
                Change((self.seen[new.parent], new.name, self.seen[old]), (self.seen[old.parent], old.name))
            )
            for path in [path for path in self.seen if path.is_relative_to(old)]:
                self.seen[new / path.relative_to(old)] = self.seen.pop(path)
        elif call in ("write", "fsync", "close"):
            number = int(arguments.split(",")[0])
            node = self.open.pop(number, None) if call == "close" else self.open.get(number)
            if node is None:
                return False
            if call == "write":
                node.written += result
            elif call == "fsync":
                self._sync(node)
        return True

    def _new(self, path: Path, node: Node) -> None:
        self.seen[path] = node
        if not node.is_folder:
            self.files.append(node)
        self.pending.append(Change((self.seen[path.parent], path.name, node)))

    def _sync(self, node: Node) -> None:
        node.synced = node.written
        for change in [change for change in self.pending if change.touches(node)]:
            change.apply()
            self.pending.remove(change)


def after_the_power_failed(disk: Disk, survives: Random | bool, whole: dict[Node, bytes], target: Path) -> None:
    """Write to `target` what is on the disk when it comes back."""

    def lucky() -> bool:
        return survives if isinstance(survives, bool) else survives.random() < 0.5

    kept = {id(node): dict(node.entries) for node in disk.seen.values()}
    changes = [change for change in disk.pending if lucky()]
    if isinstance(survives, Random):
        survives.shuffle(changes)
    for change in changes:
        place, name, node = change.appear
        if change.vanish is not None:
            kept[id(change.vanish[0])].pop(change.vanish[1], None)
        kept[id(place)][name] = node

    def write(node: Node, path: Path) -> None:
        if node.is_folder:
            path.mkdir(exist_ok=True)
            for name, child in kept[id(node)].items():
                write(child, path / name)
            return
        data = whole[node][: node.synced]
        if node.written > node.synced and lucky():
            data = whole[node][: node.written]
        path.write_bytes(data)

    write(disk.top, target)


def calls_of(trace: str) -> Iterator[tuple[str, str, int]]:
    for line in trace.splitlines():
        if found := LINE.match(line):
            yield found[1], found[2], int(found[3])


def test_whatever_a_power_failure_leaves_of_a_put_is_a_whole_object_or_none(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    done = traced(["-e", f"trace={CALLS}", "-s", "4096"], place / "store", folder)
    if done.returncode:
        pytest.skip(f"processes cannot be traced here: {done.stderr.strip()[:200]}")
    trace = (place / "trace").read_text()
    (place / "trace").unlink()
    (digest,) = Store(place / "store").digests()

    finished = Disk(place)
    for call in calls_of(trace):
        finished.does(*call)
    final = {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert {p.relative_to(place) for p, node in finished.seen.items() if not node.is_folder} == set(final)
    path_of = {node: path.relative_to(place) for path, node in finished.seen.items()}
    contents = [final[path_of[node]] for node in finished.files]

    disk, draw, states, torn_stagings, visible = Disk(place), Random(0), 0, 0, 0
    target = tmp_path / "after"
    for call in calls_of(trace):
        if not disk.does(*call):
            continue
        whole = dict(zip(disk.files, contents, strict=False))  # fewer files than there will be
        fates: list[Random | bool] = [False, True, *[draw] * DRAWS]
        for survives in fates:
            after_the_power_failed(disk, survives, whole, target)
            found = Store(target / "store")
            for name in found.digests():
                found.path(name)
                visible += 1
            torn_stagings += any((target / "store" / "tmp").glob("*"))
            states += 1
            shutil.rmtree(target)
    after_the_power_failed(disk, False, whole, target)
    assert Store(target / "store").path(digest).is_dir(), "a put that has returned is safe, though nothing else is"
    assert states >= 1000
    assert torn_stagings
    assert 0 < visible < states
