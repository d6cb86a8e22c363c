"""Folders of files kept by the hash of their contents: published whole, verified on every read.

    sha256/ab/abcdef.../manifest.json     [{"bytes": ..., "path": ..., "sha256": ...}, ...]; its own hash is the name
    sha256/ab/abcdef.../files/            the folder as it was put
    tmp/                                  writes under way, and what a killed writer left

safetensors has no checksum: a flipped bit loads as another weight. So a path is handed out only after every byte was
hashed; within one process an object whose files have not been touched since is not hashed again.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from registry.durable import copy_and_hash, full_disk_says_so, make_folders, sync_folder, write_new
from registry.errors import IntegrityError, NoSpace, Problem, raise_if_any
from registry.failpoint import failpoint
from registry.fingerprint import (
    FileEntry,
    digest_of_file,
    digest_of_manifest,
    files_of,
    manifest_bytes,
    manifest_of,
)

SETTLED_SECONDS = 2.0  # a file changed more recently than this could change again within the clock's grain

MANIFEST = "manifest.json"
HIDDEN = "removed-"  # how the names of objects that are to be erased begin, under tmp/

Signature = tuple[tuple[str, int, int, int, int], ...]  # path, inode, size, mtime ns, ctime ns


class Store:
    """A folder of content-addressed folders; any number of processes may put and read at once."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._verified: dict[str, Signature] = {}

    def put(self, folder: Path | str) -> str:
        """Keep a copy of the folder and return its digest; the same bytes are kept once.

        An object that was damaged is replaced by the good bytes.

        Raises:
            IntegrityError: the folder is empty, holds links or special files, or changed while it was read.
            NoSpace: the disk is full; the temporary copy is gone and nothing was published.
        """
        source = Path(folder)
        entries = manifest_of(source)
        digest = digest_of_manifest(entries)
        if self.is_whole(digest):
            with suppress(FileNotFoundError):  # a sweep was quicker: it is stored anew
                os.utime(self._place(digest))  # it is wanted again: no sweep may take it for old
                return digest
        needed_bytes = sum(entry.bytes for entry in entries)
        with full_disk_says_so(self.root, needed_bytes):
            make_folders(self.root / "tmp")
            self._check_room(needed_bytes)
            staging = self.root / "tmp" / f"{digest[:16]}-{os.getpid()}-{uuid.uuid4().hex}"
            try:
                staging.mkdir()
                _copy(source, entries, staging)
                self._publish(staging, digest)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return digest

    def put_files(self, files: Mapping[str, bytes]) -> str:
        """Keep files that are in memory (figures, a card) as one folder."""
        with full_disk_says_so(self.root), tempfile.TemporaryDirectory(prefix="factory-") as folder:
            for name, data in files.items():
                path = Path(folder, name)
                if not path.resolve().is_relative_to(Path(folder).resolve()):
                    raise IntegrityError.one(
                        "E-STORE-004", repr(name), "lies outside the folder", "give a relative name"
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            return self.put(folder)

    def path(self, digest: str) -> Path:
        """The folder of files, after every byte was compared with the manifest. Read it; never write there.

        Raises:
            IntegrityError: naming each file that is missing, added or different, with both hashes.
        """
        place = self._place(digest)
        try:
            return self._whole(place, digest)
        except (IntegrityError, FileNotFoundError):
            if not place.is_dir():  # it was never here, or a sweep took it from under this look
                raise self._missing(digest) from None
            raise

    def check(self, digest: str) -> None:
        """Hash every byte that lies in the store.

        Raises:
            IntegrityError: as `path` does.
        """
        self.path(digest)

    def holds(self, digest: str) -> bool:
        """Whether the object is there, not whether it is whole."""
        return self._place(digest).is_dir()

    def refuse_missing(self, *digests: str) -> None:
        """Let a commit pass only while these objects are there; their bytes were verified before.

        Raises:
            IntegrityError: one was removed since.
        """
        for digest in digests:
            if not self.holds(digest):
                raise self._missing(digest)

    def age_seconds(self, digest: str, now_seconds: float) -> float:
        """How long ago it was last put, by the clock of the file system."""
        return now_seconds - self._place(digest).stat().st_mtime

    def bytes_of(self, digest: str) -> int:
        """Its size; 0 where it is gone."""
        return sum(path.stat().st_size for path in self._place(digest).rglob("*") if path.is_file())

    def hide(self, digest: str) -> None:
        """Take an object out of sight, in one step. Only for what nothing refers to."""
        place = self._place(digest)
        make_folders(self.root / "tmp")
        failpoint("gc.before_rename")
        os.rename(place, self.root / "tmp" / f"{HIDDEN}{digest[:16]}-{uuid.uuid4().hex}")
        sync_folder(place.parent)
        failpoint("gc.after_rename")
        self._verified.pop(digest, None)

    def erase_hidden(self) -> None:
        """Take what is out of sight off the disk."""
        for path in (self.root / "tmp").glob(f"{HIDDEN}*"):
            failpoint("gc.before_erase")
            shutil.rmtree(path, ignore_errors=True)

    def litter(self, now_seconds: float) -> Iterator[tuple[str, float]]:
        """What killed writers left and how long ago, as (name, age in seconds)."""
        folder = self.root / "tmp"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            with suppress(FileNotFoundError):  # whoever wrote it is done
                yield str(path), now_seconds - path.stat().st_mtime

    def discard(self, name: str) -> None:
        """Remove a piece of litter."""
        shutil.rmtree(name, ignore_errors=True) if os.path.isdir(name) else Path(name).unlink(missing_ok=True)

    def manifest(self, digest: str) -> tuple[FileEntry, ...]:
        """The files of an object with sizes and hashes, after it was verified."""
        place = self.path(digest).parent
        try:
            return entries_of(place)
        except FileNotFoundError:
            raise self._missing(digest) from None

    def digests(self) -> Iterator[str]:
        """Every object in the store, sorted."""
        shelves = self.root / "sha256"
        if shelves.is_dir():
            for shelf in sorted(shelves.iterdir()):
                yield from sorted(place.name for place in shelf.iterdir())

    def _whole(self, place: Path, digest: str) -> Path:
        """The files, hashed unless nothing has touched them since they were."""
        before = _signature(place)
        if before is None or self._verified.get(digest) != before:
            raise_if_any(IntegrityError, _differences(place, digest))
            self._verified.pop(digest, None)
            if before is not None and _signature(place) == before and _settled(before):
                self._verified[digest] = before
        return place / "files"

    def _missing(self, digest: str) -> IntegrityError:
        wrong, remedy = f"is not in the store {self.root}", "restore it from a backup, or train again"
        return IntegrityError.one("E-STORE-001", digest, wrong, remedy)

    def _place(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise IntegrityError.one("E-STORE-001", repr(digest), "is not a SHA-256 in hex", "give the 64 digits")
        return self.root / "sha256" / digest[:2] / digest

    def is_whole(self, digest: str) -> bool:
        """Whether it is there and every byte verifies."""
        try:
            self.path(digest)
        except IntegrityError:
            return False
        return True

    def _check_room(self, needed_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self.root).free
        if needed_bytes > free_bytes:
            wrong = f"{needed_bytes:,} bytes are needed and {free_bytes:,} are free"
            raise NoSpace.one("E-STORE-006", self.root, wrong, "free space and run again; nothing was published")

    def _publish(self, staging: Path, digest: str) -> None:
        """Rename into place. Whoever comes second finds the first one's object and keeps it if it is whole."""
        place = self._place(digest)
        make_folders(place.parent)
        failpoint("store.before_rename")
        if place.exists() and not self.is_whole(digest):
            os.rename(place, self.root / "tmp" / f"damaged-{digest[:16]}-{uuid.uuid4().hex}")
        try:
            os.rename(staging, place)
        except OSError:
            if not self.is_whole(digest):
                raise
        failpoint("store.after_rename")
        sync_folder(place.parent)


def _copy(source: Path, entries: tuple[FileEntry, ...], staging: Path) -> None:
    """The files and their manifest under a temporary name, every byte and every name durable."""
    target = staging / "files"
    target.mkdir()
    for entry in entries:
        (target / entry.path).parent.mkdir(parents=True, exist_ok=True)
        written = FileEntry(entry.path, *copy_and_hash(source / entry.path, target / entry.path))
        if written != entry:
            wrong = f"changed while it was stored: sha256 was {entry.sha256}, then {written.sha256}"
            raise IntegrityError.one("E-STORE-005", source / entry.path, wrong, "store it when nothing writes to it")
        os.chmod(target / entry.path, 0o444)
    write_new(staging / MANIFEST, manifest_bytes(entries))
    for folder, _, _ in os.walk(staging):
        sync_folder(Path(folder))


def entries_of(manifest: Path | bytes) -> tuple[FileEntry, ...]:
    """The lines of a manifest: of an object's folder, or of the manifest's own bytes."""
    data = manifest if isinstance(manifest, bytes) else (manifest / MANIFEST).read_bytes()
    return tuple(FileEntry(**entry) for entry in json.loads(data))


def _differences(place: Path, digest: str) -> Iterator[Problem]:
    """What is there against what the digest says: the manifest first, then every file of it, then what is too many."""
    remedy = "restore it from a backup, or make the version again"
    manifest = place / MANIFEST
    found = digest_of_file(manifest) if manifest.is_file() else "nothing"
    if found != digest:
        yield Problem("E-STORE-002", str(manifest), f"expected sha256 {digest}, found {found}", remedy)
        return
    entries = {entry.path: entry for entry in entries_of(place)}
    try:
        present = files_of(place / "files")
    except IntegrityError as error:
        yield from error.problems
        return
    for path, entry in entries.items():
        found = digest_of_file(place / "files" / path) if path in present else "nothing"
        if found != entry.sha256:
            yield Problem("E-STORE-002", f"{digest}/{path}", f"expected sha256 {entry.sha256}, found {found}", remedy)
    for path in present:
        if path not in entries:
            yield Problem(
                "E-STORE-003", f"{digest}/{path}", "is not in the manifest", "remove it; nothing may be added"
            )


def _signature(place: Path) -> Signature | None:
    """What changes when any file changes, without reading it; None where something is not a plain file."""
    rows = []
    for folder, _, names in os.walk(place):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode) and path != folder:
                return None
            rows.append((path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(sorted(rows))


def _settled(signature: Signature) -> bool:
    """Whether the last change is so old that a further one would show in the times (git's "racily clean" entries).

    The wall clock is read here and nowhere else in this file: it is compared with the file system's own times.
    """
    newest_ns = max(max(mtime_ns, ctime_ns) for _, _, _, mtime_ns, ctime_ns in signature)
    return time.time_ns() - newest_ns > SETTLED_SECONDS * 1e9
