"""Bytes are what their hash says, or they are not handed out: what only a folder has to keep."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry.errors import IntegrityError, NoSpace
from registry.fingerprint import digest_of_file
from registry.store import Store

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter-like folder of about 3 kB."""
    folder = tmp_path / "adapter"
    (folder / "nested").mkdir(parents=True)
    chance = random.Random(7)
    (folder / "adapter_model.safetensors").write_bytes(chance.randbytes(2000))
    (folder / "adapter_config.json").write_text('{"r": 16}')
    (folder / "nested" / "tokenizer.json").write_bytes(chance.randbytes(500))
    return folder


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below with its hash: the independent witness."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def kept_files(store: Store, digest: str) -> list[Path]:
    return [path for path in (store.root / "sha256" / digest[:2] / digest).rglob("*") if path.is_file()]


def test_everything_is_durable_before_the_name_and_the_name_before_the_answer(store, folder, monkeypatch):
    """The order of system calls, as the kernel would see it."""
    calls: list[tuple[str, str]] = []
    real = os.rename

    def rename(source, target):
        calls.append(("rename", str(target)))
        real(source, target)

    monkeypatch.setattr("os.fsync", lambda number: calls.append(("fsync", os.readlink(f"/proc/self/fd/{number}"))))
    monkeypatch.setattr("os.rename", rename)
    digest = store.put(folder)
    published = calls.index(("rename", str(store.root / "sha256" / digest[:2] / digest)))
    staging = next(path for kind, path in calls if path.endswith("/manifest.json")).removesuffix("/manifest.json")
    before = {path.removeprefix(staging) for kind, path in calls[:published] if path.startswith(staging)}
    expected = {"", "/manifest.json", "/files", "/files/nested", *("/files/" + name for name in snapshot(folder))}
    assert before == expected
    assert ("fsync", str(store.root / "sha256" / digest[:2])) in calls[published:]
    assert ("fsync", str(store.root)) in calls[:published]


def test_the_same_bytes_are_kept_once_and_nothing_is_left_behind(store, folder):
    first = store.put(folder)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    assert store.put(folder) == first
    assert store.put_files({name: (folder / name).read_bytes() for name in snapshot(folder)}) == first
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()} == before
    assert list((store.root / "tmp").iterdir()) == []
    assert list(store.digests()) == [first]


GONE = {"is_whole": False, "holds": False}  # how they say that it is missing; the others refuse


@pytest.mark.parametrize("read", ["path", "manifest", "check", "refuse_missing", "put", *GONE])
@pytest.mark.parametrize("seen_before", [False, True])
def test_an_object_that_a_sweep_takes_at_any_line_of_a_look_is_missing_or_stored_anew(
    store, folder, read, seen_before, monkeypatch
):
    """Every interleaving, line by line: a tracer hides the object before line 1, 2, 3, ... of the store's own code."""
    digest = store.put(folder)
    wanted = folder if read == "put" else digest
    whole = getattr(store, read)(wanted)
    gone = digest if read == "put" else GONE.get(read, "E-STORE-001")
    monkeypatch.setattr("registry.store.SETTLED_SECONDS", 0.0)
    for line in itertools.count(1):
        store.put(folder)
        looker = store if seen_before else Store(store.root)
        if seen_before:
            time.sleep(0.001)
            looker.path(digest)
        with hidden_at(line, lambda: Store(store.root).hide(digest)) as passed:
            try:
                said = getattr(looker, read)(wanted)
            except IntegrityError as refusal:
                said = refusal.problems[0].code
        assert said in (whole, gone)
        if not passed:
            break
    assert line > 1


@contextmanager
def hidden_at(line: int, act: Callable[[], object]) -> Iterator[list[int]]:
    """Do it before the n-th line that runs in registry/store.py; says [n] when that line was reached."""
    passed: list[int] = []
    left = itertools.count(line, -1)

    def trace(frame, event, _):
        if not frame.f_code.co_filename.endswith("registry/store.py") or passed:
            return None
        if event == "line" and next(left) == 1:
            passed.append(line)
            act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield passed
    finally:
        sys.settrace(before)


def test_files_in_memory_may_not_leave_their_folder(store):
    with pytest.raises(IntegrityError):
        store.put_files({"../escaped": b"x"})


def test_one_flipped_bit_anywhere_is_found_and_named(store, folder):
    digest = store.put(folder)
    files = kept_files(store, digest)
    assert len(files) == 4  # the manifest too
    chance = random.Random(0)
    for path in files:
        os.chmod(path, 0o644)
    for _ in range(1000):
        path = chance.choice(files)
        good = path.read_bytes()
        place, bit = chance.randrange(len(good)), chance.randrange(8)
        bad = bytearray(good)
        bad[place] ^= 1 << bit
        path.write_bytes(bad)
        with pytest.raises(IntegrityError) as refusal:
            store.path(digest)
        (problem,) = refusal.value.problems
        assert path.name in problem.where
        found = hashlib.sha256(bytes(bad)).hexdigest()
        assert f"found {found}" in problem.wrong
        path.write_bytes(good)
    assert snapshot(store.path(digest)) == snapshot(folder)
    assert IntegrityError.exit_code == 4


def test_a_file_that_was_verified_long_ago_is_not_read_again_until_it_is_touched(store, folder, monkeypatch):
    monkeypatch.setattr("registry.store.SETTLED_SECONDS", 0.0)
    digest = store.put(folder)
    store.path(digest)
    reads = []
    monkeypatch.setattr("registry.store.digest_of_file", lambda path: reads.append(path) or digest_of_file(path))
    store.path(digest)
    assert reads == []
    victim = store.path(digest) / "adapter_config.json"
    status = victim.stat()
    os.chmod(victim, 0o644)
    victim.write_text('{"r": 17}')
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))  # the modification time lies; the change time cannot
    with pytest.raises(IntegrityError):
        store.path(digest)


def test_a_file_that_was_written_a_moment_ago_is_read_again_every_time(store, folder, monkeypatch):
    """Its times could stay the same through another change: the clock of the file system ticks coarsely."""
    digest = store.put(folder)
    reads = []
    monkeypatch.setattr("registry.store.digest_of_file", lambda path: reads.append(path) or digest_of_file(path))
    for _ in range(2):
        store.path(digest)
    assert len(reads) == 2 * len(kept_files(store, digest))


@pytest.mark.parametrize("harm", ["link", "gone"])
def test_links_and_absence_are_refused(store, folder, harm):
    digest = store.put(folder)
    place = store.path(digest)
    victim = place / "adapter_config.json"
    if harm == "link":
        victim.unlink()
        victim.symlink_to(folder / "adapter_config.json")
    else:
        shutil.rmtree(place.parent)
    with pytest.raises(IntegrityError):
        store.path(digest)


def put_in_child(root: Path, folder: Path, failpoint: str) -> int | None:
    """Put in a process of its own, with one step made to fail; its exit code (negative: killed by that signal)."""

    def work() -> None:
        os.environ["FACTORY_FAILPOINT"] = failpoint
        try:
            Store(root).put(folder)
        except NoSpace:
            os._exit(8)
        except OSError:
            os._exit(7)

    child = FORK.Process(target=work)
    child.start()
    child.join(30)
    return child.exitcode


STEPS = [f"store.{step}" for step in ("write", "fsync", "before_rename", "after_rename")]


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_exit_8_and_leaves_nothing_but_whole_objects(store, folder, step):
    other = store.put_files({"good": b"state"})
    assert put_in_child(store.root, folder, f"{step}=errno:28") == 8
    assert list((store.root / "tmp").iterdir()) == []
    for digest in store.digests():
        store.path(digest)
    assert store.holds(other)
    assert snapshot(store.path(store.put(folder))) == snapshot(folder)


def test_a_real_file_size_limit_is_no_space(store, folder):
    def work() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            Store(store.root).put(folder)
        except NoSpace as error:
            os._exit(error.exit_code)

    child = FORK.Process(target=work)
    child.start()
    child.join(30)
    assert child.exitcode == 8
    assert list(store.digests()) == []
    assert list((store.root / "tmp").iterdir()) == []


def test_an_input_output_error_is_not_called_a_full_disk(store, folder):
    assert put_in_child(store.root, folder, "store.fsync=errno:5") == 7
    assert list(store.digests()) == []


def test_a_file_that_changes_while_it_is_stored_is_refused(store, folder, monkeypatch):
    from registry import store as module

    real = module.manifest_of

    def manifest_then_change(source):
        entries = real(source)
        (source / "adapter_config.json").write_text('{"r": 8}')
        return entries

    monkeypatch.setattr(module, "manifest_of", manifest_then_change)
    with pytest.raises(IntegrityError) as refusal:
        store.put(folder)
    assert "changed while it was stored" in str(refusal.value)
    assert list(store.digests()) == []
