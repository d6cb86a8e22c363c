"""Named places where a test can make the outside world fail: kill, error or delay at exactly this step.

    FACTORY_FAILPOINT="store.before_rename=kill"        SIGKILL when the step is reached
    FACTORY_FAILPOINT="store.before_rename=kill@2"      ... the second time
    FACTORY_FAILPOINT="store.write=errno:28"            OSError(ENOSPC)
    FACTORY_FAILPOINT="promote.before_link=sleep:0.01"       a slow step, to widen a race

Free when the variable is not set: one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

_reached: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Pass, or do what the environment asks of the step `name`."""
    asked = os.environ.get("FACTORY_FAILPOINT")
    if not asked:
        _reached.clear()
        return
    key, _, action = asked.partition("=")
    what, _, turn = action.partition("@")
    if key != name:
        return
    _reached[asked] += 1
    if _reached[asked] != int(turn or 1):
        return
    kind, _, detail = what.partition(":")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "errno":
        raise OSError(int(detail), os.strerror(int(detail)))
    elif kind == "sleep":
        time.sleep(float(detail))
    else:
        raise ValueError(f"FACTORY_FAILPOINT knows kill, errno:N and sleep:S; found {what}")
