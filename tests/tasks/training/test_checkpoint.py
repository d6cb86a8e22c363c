"""Checkpoints against crashes at each step of a write, against swapped and cut files, and against other runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.errors import ArtifactRefused
from tasks.training.checkpoint import COMMIT, STATE, TENSORS, Checkpoints

PLACES = ("tensors", "state", "files_synced", "commit", "before_rename", "renamed", "rotate")


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"now/a": torch.full((3, 2), float(step)), "random/cpu": torch.arange(5, dtype=torch.uint8)}


def some(folder: Path, *steps: int, run: str = "mine") -> Checkpoints:
    made = Checkpoints(folder, run)
    for step in steps:
        made.save(step, {"step": step, "note": [1.5, None]}, tensors(step))
    return made


def in_a_child(work: Callable[[], None]) -> int:
    """The signal that ended a forked child, or 0."""
    if (child := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] & 0x7F


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    found = some(tmp_path, 5, 10).newest()
    assert found is not None
    assert (found.step, found.state) == (10, {"step": 10, "note": [1.5, None]})
    assert {name: value.tolist() for name, value in found.tensors.items()} == {
        name: value.tolist() for name, value in tensors(10).items()
    }


def test_nothing_there_is_nothing_found(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "new", "mine").newest() is None


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_any_place_of_a_write_the_newest_whole_checkpoint_is_found(tmp_path: Path, place: str) -> None:
    some(tmp_path, 5, 10)

    def reached(name: str) -> None:
        if name == f"checkpoint.{place}":
            os.kill(os.getpid(), signal.SIGKILL)

    writer = Checkpoints(tmp_path, "mine", reached=reached)
    assert in_a_child(lambda: writer.save(15, {"step": 15}, tensors(15)) and None) == signal.SIGKILL
    found = Checkpoints(tmp_path, "mine").newest()
    assert found is not None
    assert found.step == (15 if place in ("renamed", "rotate") else 10)
    assert found.tensors["now/a"].unique().tolist() == [found.step]
    some(tmp_path, 15, 20)  # what the dead one left is in nobody's way
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", [TENSORS, STATE, COMMIT])
@pytest.mark.parametrize("harm", ["remove", "cut", "flip", "from another step"])
def test_a_harmed_file_is_seen_set_aside_and_the_one_before_is_used(tmp_path: Path, name: str, harm: str) -> None:
    some(tmp_path, 5, 10)
    path = tmp_path / "step-00000010" / name
    data = path.read_bytes()
    if harm == "remove":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "flip":
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    else:
        shutil.copy(tmp_path / "step-00000005" / name, path)
    reader = Checkpoints(tmp_path, "mine")
    found = reader.newest()
    assert found is not None
    assert found.step == 5
    (line,) = reader.torn
    assert line.startswith("step-00000010: ")
    assert name in line or harm == "flip"  # a flipped digest blames the file that it is of
    assert (tmp_path / "torn-step-00000010").is_dir()


def test_all_torn_is_none_and_nothing_is_deleted_unseen(tmp_path: Path) -> None:
    for folder in some(tmp_path, 5, 10).steps():
        (folder / COMMIT).unlink()
    reader = Checkpoints(tmp_path, "mine")
    assert reader.newest() is None
    assert len(reader.torn) == len(list(tmp_path.glob("torn-*"))) == 2


def test_another_runs_checkpoint_is_refused_and_left_alone(tmp_path: Path) -> None:
    some(tmp_path, 5, run="theirs")
    with pytest.raises(ArtifactRefused) as refused:
        Checkpoints(tmp_path, "mine").newest()
    assert "belongs to run theirs, this is mine" in str(refused.value)
    assert (tmp_path / "step-00000005" / COMMIT).is_file()


def test_at_every_instant_of_a_rotation_a_whole_checkpoint_is_there(tmp_path: Path) -> None:
    seen: list[int] = []

    def reached(name: str) -> None:
        judge = Checkpoints(tmp_path, "mine")
        seen.append(sum(not judge.fault(path) for path in judge.steps()))

    writer = Checkpoints(tmp_path, "mine", reached=reached)
    for step in range(1, 8):
        writer.save(step, {}, tensors(step))
    assert len(seen) > 40
    assert min(seen[6:]) >= 1  # the first write has six places before the first checkpoint is there
    assert [path.name for path in writer.steps()] == ["step-00000006", "step-00000007"]


def test_a_write_that_reads_back_differently_keeps_the_ones_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = some(tmp_path, 5, 10)

    def lying_disk(name: str) -> None:
        if name == "checkpoint.renamed":
            path = tmp_path / "step-00000015" / TENSORS
            path.write_bytes(path.read_bytes()[:-1] + b"x")

    writer._reached = lying_disk
    with pytest.raises(OSError, match="reads back differently"):
        writer.save(15, {}, tensors(15))
    monkeypatch.undo()
    assert [path.name for path in writer.steps()] == ["step-00000005", "step-00000010", "step-00000015"]
    found = Checkpoints(tmp_path, "mine").newest()
    assert found is not None
    assert found.step == 10


def test_a_checkpoint_holds_json_and_safetensors_and_no_pickle(tmp_path: Path) -> None:
    some(tmp_path, 5)
    folder: Any = tmp_path / "step-00000005"
    assert sorted(path.name for path in folder.iterdir()) == sorted([TENSORS, STATE, COMMIT])
    json.loads((folder / STATE).read_text())
    (length,) = __import__("struct").unpack("<Q", (folder / TENSORS).read_bytes()[:8])
    json.loads((folder / TENSORS).read_bytes()[8 : 8 + length])
