"""Writes that survive the power going off, in the one order that publishes all or nothing.

write under a temporary name -> fsync files -> fsync folders -> rename -> fsync the parent
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.errors import NoSpace
from registry.failpoint import failpoint

CHUNK_BYTES = 1 << 20
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def full_disk_says_so(place: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn a full disk, quota or file size limit into one line.

    Raises:
        NoSpace: instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        need = "" if needed_bytes is None else f"; {needed_bytes:,} bytes were to be written"
        wrong = f"no space is left ({os.strerror(error.errno or 0)}){need}"
        raise NoSpace.one("E-STORE-006", place, wrong, "free space and run again; nothing was published") from error


def copy_and_hash(source: Path, target: Path) -> tuple[int, str]:
    """Copy one file, fsync the copy, and return the size and SHA-256 of what was written."""
    digest, size = hashlib.sha256(), 0
    with open(source, "rb") as reader, open(target, "xb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            failpoint("store.write")
            writer.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        writer.flush()
        failpoint("store.fsync")
        os.fsync(writer.fileno())
    return size, digest.hexdigest()


def write_new(path: Path, data: bytes) -> None:
    """A new file, durable once its folder is."""
    with open(path, "xb") as writer:
        writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """The file holds the old bytes or the new ones, never a mixture, also after a crash."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    write_new(temporary, data)
    try:
        os.replace(temporary, path)
    except OSError:  # a folder has the name
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> None:
    """Create missing folders and make each new name durable in its parent."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync_folder(new.parent)
