"""The command line: `factory COMMAND ...`. Each command imports what it needs when it runs, so that help is instant.

--json (results and problems as JSON on stdout), --quiet (no progress) and --debug (tracebacks, libraries' own logs) are
understood by every command, before or after its name. The commands are in `flows.commands`; here is the one place where
every error becomes a line and an exit code.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

import typer

from flows.commands import making, reading, serving, remembering, machine  # isort: skip # in the order of the help
from flows.commands.speaking import app, manner, print_table, show_gates

__all__ = ["app", "machine", "main", "making", "print_table", "reading", "remembering", "serving"]

HEADINGS = {
    "making": "Make adapters and merge them",
    "reading": "Look inside",
    "serving": "Serve, watch and teach again",
    "remembering": "What is registered",
    "machine": "This machine",
}
for command in app.registered_commands:
    command.rich_help_panel = HEADINGS[command.callback.__module__.rpartition(".")[2]]

INTERRUPTED, READER_GONE = 130, 1  # as Typer has it where it meets them itself


def main(arguments: list[str] | None = None) -> NoReturn:
    """The console script. Exits with the code of the error contract."""
    atexit.register(gc.freeze)  # what is left then needs no collecting, which with torch loaded takes half a second
    words = sys.argv[1:] if arguments is None else list(arguments)
    for name in ("json", "quiet", "debug"):
        setattr(manner, name, f"--{name}" in words)
    words = [word for word in words if word not in ("--json", "--quiet", "--debug")]
    manner.told = {}
    hears = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminated) if hears else None
    try:
        code = app(words, standalone_mode=False, prog_name="factory")
        if code == INTERRUPTED:  # Typer answers Ctrl-C with this code and no word
            raise KeyboardInterrupt
        if manner.told:
            print(json.dumps({"ok": True, "exit_code": 0, **manner.told}, default=str))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does the interpreter's own flush complain
        sys.exit(READER_GONE)
    except BaseException as error:  # the one place where every error becomes a line and a code
        sys.exit(_ended(error))
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    sys.exit(code if isinstance(code, int) else 0)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """What was begun is undone on the way out, as after Ctrl-C; a training hears the signal itself."""
    from flows.complaints import Terminated

    raise Terminated


def _ended(error: BaseException) -> int:
    """Lines to stderr, one JSON document to stdout where it was asked for, and the exit code."""
    from flows.complaints import as_json, complain, stop_behind

    if isinstance(error, typer.Abort):
        error = KeyboardInterrupt()
    if manner.debug and isinstance(error, Exception):
        import traceback

        traceback.print_exception(error)
    error = stop_behind(error)
    show_gates(error)
    code = complain(error)
    if manner.json:
        print(json.dumps({**as_json(error), **manner.told}, default=str))
    return code


if __name__ == "__main__":
    main()
