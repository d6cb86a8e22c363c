"""Prefect's temporary server, which a command starts where no server is up, lives exactly as long as that command.

Prefect starts it as a child in the command's process group. There Ctrl-C would end it before the command has told it
how its runs ended, and whoever kills the command would leave it behind.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from threading import Thread
from typing import Any

APP = "prefect.server.api.server:create_app"
LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 10.0


class _Popen(subprocess.Popen[Any]):
    """Prefect has no setting for how its server is started; every other program starts as it was asked to."""

    def __init__(self, args: Any, *rest: Any, **named: Any) -> None:
        if isinstance(args, list) and APP in args and args[1:3] == ["-m", "uvicorn"]:
            args = [args[0], "-P", __file__, str(os.getpid()), *args[3:]]
            named["start_new_session"] = True
        super().__init__(args, *rest, **named)


def shield() -> None:
    """Have Prefect start its temporary server in a session of its own, and end with this process."""
    subprocess.Popen = _Popen  # type: ignore[misc]


def _end_with(command: int) -> None:
    while os.getppid() == command:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    Thread(target=_end_with, args=(int(sys.argv.pop(1)),), daemon=True).start()
    runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)
