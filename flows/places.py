"""Files and folders that a person names: whether something is there, and what cannot be written there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import SpecRefused

NO_PLACE = frozenset(
    {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY}
)


def is_there(path: Path) -> bool:
    """Whether a path exists; what is too long to be a file's name does not."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


@contextmanager
def writing_to(path: Path, option: str) -> Iterator[None]:
    """The block writes to the path that an option names.

    Raises:
        SpecRefused: nothing can be written there: a folder has the name, or a file that of a folder above.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        reason = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno  # a file where a folder has to be
        wrong = f"cannot be written: {os.strerror(reason).lower()}"
        raise SpecRefused.one("E-SPEC-049", f"{option} {path}", wrong, "name another place") from error


def make_room_for(path: Path, option: str = "--out") -> None:
    """The folders above a path.

    Raises:
        SpecRefused: nothing can be written there.
    """
    with writing_to(path, option):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.exists()  # its own name may be too long


def write_out(path: Path, data: bytes, option: str = "--out") -> None:
    """A file and the folders above it.

    Raises:
        SpecRefused: nothing can be written there.
    """
    make_room_for(path, option)
    with writing_to(path, option):
        path.write_bytes(data)
