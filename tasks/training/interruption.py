"""A run that is told to stop ends at the next micro-batch with a checkpoint, and the same command goes on from it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.errors import FactoryError

SIGNAL_EXIT = 128
PATIENCE_SECONDS = 20.0


class Stopped(FactoryError):
    """The run was told to stop and has written where it was."""

    exit_code = SIGNAL_EXIT + signal.SIGTERM


@contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """A question to be asked between micro-batches: has SIGTERM or Ctrl-C come?

    A second signal acts at once. If the block has not ended twenty seconds after the first, as in one huge product, the
    process ends as if killed, and the checkpoint before holds. Outside the main thread no signal is heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    heard: list[int] = []
    timers: list[threading.Timer] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if heard:
            restore()
            signal.raise_signal(number)
            return
        heard.append(number)
        timer = threading.Timer(PATIENCE_SECONDS, os._exit, (SIGNAL_EXIT + number,))
        timer.daemon = True
        timer.start()
        timers.append(timer)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, hear)
    try:
        yield lambda: bool(heard)
    except Stopped:
        if heard == [signal.SIGINT]:
            raise KeyboardInterrupt from None
        raise
    finally:
        for timer in timers:
            timer.cancel()
        restore()
