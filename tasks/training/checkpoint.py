"""Checkpoints of a run: after a crash at any instant the newest whole one is found, and nothing else is believed.

<folder>/step-00000015/tensors.safetensors   weights, best weights, optimiser, random states
<folder>/step-00000015/state.json            position in the data, curve so far
<folder>/step-00000015/commit.json           whose run this is, size and SHA-256 of each file; written last
<folder>/torn-step-00000020/                 what a crash cut short, set aside

Written to staging, fsynced file by file, renamed; an older one goes only after the new one has been read back. No
pickle anywhere: loading a checkpoint runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.errors import ArtifactRefused

TENSORS, STATE, COMMIT = "tensors.safetensors", "state.json", "commit.json"
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a run was after `step` optimiser steps."""

    step: int
    state: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: what the bytes of the result depend on; a checkpoint of another run is refused.
        reached: told the name of each step of a write; tests let the outside world fail there.
    """

    def __init__(self, folder: Path, run: str, *, reached: Callable[[str], None] = lambda name: None) -> None:
        self.folder = folder
        self.run = run
        self.torn: list[str] = []
        self._reached = reached

    def save(self, step: int, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        """Write a checkpoint that is there whole or not at all, then let the oldest go.

        Raises:
            OSError: the disk is full, or what was written reads back differently; older checkpoints are as before.
        """
        name = f"step-{step:08d}"
        staging, final = self.folder / f".staging-{name}", self.folder / name
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        save_file(dict(tensors), staging / TENSORS)
        self._reached("checkpoint.tensors")
        (staging / STATE).write_text(json.dumps(state), encoding="utf-8")
        self._reached("checkpoint.state")
        files = {file: _synced(staging / file) for file in (TENSORS, STATE)}
        self._reached("checkpoint.files_synced")
        commit = {"run": self.run, "step": step, "files": files}
        (staging / COMMIT).write_text(json.dumps(commit), encoding="utf-8")
        self._reached("checkpoint.commit")
        _synced(staging / COMMIT)
        _sync_folder(staging)
        self._reached("checkpoint.before_rename")
        if final.exists():
            self._set_aside(final)
        os.rename(staging, final)
        _sync_folder(self.folder)
        self._reached("checkpoint.renamed")
        if fault := self.fault(final):
            raise OSError(f"{final}: reads back differently: {fault}")
        self._rotate()
        return final

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; torn ones on the way are set aside, and named in `torn`.

        Raises:
            ArtifactRefused: a checkpoint here belongs to another run.
        """
        for path in reversed(self.steps()):
            if fault := self.fault(path):
                self.torn.append(f"{path.name}: {fault}")
                self._set_aside(path)
                continue
            owner = json.loads((path / COMMIT).read_text(encoding="utf-8"))["run"]
            if owner != self.run:
                wrong = f"belongs to run {owner[:12]}, this is {self.run[:12]}"
                raise ArtifactRefused.one("E-TRAIN-004", path, wrong, "remove the folder, or name another")
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            return Checkpoint(int(path.name.removeprefix("step-")), state, load_file(path / TENSORS))
        return None

    def steps(self) -> list[Path]:
        """Folders that look like checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def fault(self, path: Path) -> str:
        """Why a checkpoint cannot be believed; empty if it can."""
        try:
            commit = json.loads((path / COMMIT).read_text(encoding="utf-8"))
            named = f"step-{commit['step']:08d}"
            files = {name: (entry["bytes"], entry["sha256"]) for name, entry in commit["files"].items()}
        except FileNotFoundError:
            return f"{COMMIT} is missing"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{COMMIT} is not whole"
        if named != path.name:
            return f"{COMMIT} is that of {named}"
        if set(files) != {TENSORS, STATE}:
            return f"{COMMIT} names other files"
        for name, (size, digest) in sorted(files.items()):
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != size or _digest(path / name) != digest:
                return f"{name} has SHA-256 {_digest(path / name)[:12]}, {digest[:12]} was written"
        return ""

    def _rotate(self) -> None:
        """Let all but the newest go, under another name first: half a deletion never looks like a checkpoint."""
        for path in self.steps()[:-KEPT]:
            self._reached("checkpoint.rotate")
            leaving = path.with_name(f".leaving-{path.name}")
            shutil.rmtree(leaving, ignore_errors=True)
            os.rename(path, leaving)
            shutil.rmtree(leaving, ignore_errors=True)

    def _set_aside(self, path: Path) -> None:
        place = path.with_name(f"torn-{path.name}")
        shutil.rmtree(place, ignore_errors=True)
        os.rename(path, place)


def _synced(path: Path) -> dict[str, Any]:
    """The file on disk, its size and its SHA-256."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
