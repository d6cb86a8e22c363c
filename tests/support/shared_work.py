"""What several processes that run the tests need alike is made by one of them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def once_for_all(made: Path) -> Iterator[Path]:
    """The others wait while one makes it."""
    with open(made.with_suffix(".lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield made
