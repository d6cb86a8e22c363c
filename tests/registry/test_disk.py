"""C11: a disk that is really full. Exit 8, the last good state intact, and everything goes on when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import NoSpace
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.store import Store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "factory-test", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a ledger may still be open


def filled(place: Path, leave_bytes: int) -> Path:
    """A file that takes all the room but a little."""
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    ballast = place / "ballast"
    ballast.write_bytes(b"x" * max(0, free - leave_bytes))
    return ballast


@pytest.mark.parametrize("leave_bytes", [0, 8_192, 40_960])
def test_a_full_disk_is_exit_8_and_registering_goes_on_when_there_is_room(
    small_disk, make_workshop, migrated_file, tmp_path, leave_bytes
):
    (small_disk / "ledger.db").write_bytes(migrated_file.read_bytes())
    workshop = make_workshop(f"sqlite:///{small_disk}/ledger.db", Store(small_disk / "store"))
    workshop.ledger.register(workshop.draft("triage", 1))
    workshop.ledger.promote("triage", 1, expected=None, decision={})
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(60_000))
    ballast = filled(small_disk, leave_bytes)
    with pytest.raises(NoSpace) as refusal:
        workshop.store.put(folder)
    assert refusal.value.exit_code == 8
    assert len(refusal.value.lines()) == 1
    assert list((small_disk / "store" / "tmp").iterdir()) == []
    assert fsck(workshop.ledger, workshop.store) == ()
    ballast.unlink()
    assert workshop.store.put(folder)
    assert workshop.ledger.register(workshop.draft("triage", 2)).number == 2
    assert fsck(workshop.ledger, workshop.store) == ()


def test_a_ledger_that_cannot_grow_says_so_and_loses_nothing(small_disk, make_workshop, migrated_file, tmp_path):
    (small_disk / "ledger.db").write_bytes(migrated_file.read_bytes())
    workshop = make_workshop(f"sqlite:///{small_disk}/ledger.db", Store(tmp_path / "store"))
    drafts = [workshop.draft("triage", place, spec={"words": f"{place}" * 2000}) for place in range(12)]
    known = workshop.ledger.register(drafts[0])
    ballast = filled(small_disk, 4_096)
    refusals = []
    for draft in drafts:
        try:
            workshop.ledger.register(draft)
        except NoSpace as refusal:
            refusals.append(refusal.exit_code)
    assert set(refusals) == {8}
    ballast.unlink()
    with Ledger.open(f"sqlite:///{small_disk}/ledger.db", store=workshop.store) as ledger:
        assert ledger.version(known.ref) == known
        assert len({ledger.register(draft).number for draft in drafts}) == 12
        assert fsck(ledger, workshop.store) == ()
