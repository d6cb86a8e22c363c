"""What a person sees while a flow runs: what happens now, how far it is, how long it still takes.

On a terminal one line is redrawn; elsewhere a line is printed every few seconds. Everything goes to stderr, so that
`--json` on stdout stays clean, and sentences also reach the log of the Prefect run.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

INTERVAL_SECONDS = 5.0
log = logging.getLogger("prefect.factory")


@dataclass
class Voice:
    """Speaks for the whole process; `quiet` keeps it silent."""

    quiet: bool = False
    _last: float = field(default=0.0, repr=False)
    _open: bool = field(default=False, repr=False)

    def say(self, sentence: str) -> None:
        """A sentence on a line of its own."""
        log.info(sentence)
        if not self.quiet:
            self._close()
            print(sentence, file=sys.stderr, flush=True)

    @contextmanager
    def hushed(self) -> Iterator[None]:
        """Silent on the terminal while the block runs: for what is done ahead and said in its turn."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before

    def bar(self, label: str, done: int, total: int, seconds_left: float, note: str = "") -> None:
        """How far a long step is."""
        if self.quiet or total <= 0:
            return
        line = (
            f"    {label} {done}/{total} ({done / total:.0%}), {seconds_left:.0f} s left{', ' + note if note else ''}"
        )
        now = time.monotonic()
        if sys.stderr.isatty():
            if now - self._last > 0.2 or done == total:
                print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
                self._last, self._open = now, True
        elif now - self._last > INTERVAL_SECONDS:
            print(line, file=sys.stderr, flush=True)
            self._last = now

    def _close(self) -> None:
        if self._open:
            print("\r\x1b[2K", end="", file=sys.stderr)
            self._open = False


voice = Voice()
