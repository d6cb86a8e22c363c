"""Any error as a person should meet it: its lines and its exit code, and a traceback only on request."""

from __future__ import annotations

import errno
import sys
from typing import Any

BUG, INTERRUPTED, NO_SPACE, DOWN = 70, 130, 8, 7


def lines_and_code(error: BaseException) -> tuple[list[str], int]:
    """What is printed, one line per problem, and the exit code.

    An error of ours knows both. Of the others, a full disk and a silent service are recognised; the rest is our bug.
    """
    if hasattr(error, "exit_code") and hasattr(error, "lines"):
        return error.lines(), int(error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return ["stopped; nothing half-done was kept"], INTERRUPTED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return [f"E-STORE-006 {error.filename or 'disk'}: no space left -> free space and run again"], NO_SPACE
    if isinstance(error, ConnectionError) or type(error).__module__.startswith(("httpx", "httpcore")):
        return [f"E-ENV-090 network: {_first(error)} -> run again when the service is up; it is safe"], DOWN
    return [f"E-ENV-099 {type(error).__name__}: {_first(error)} -> this is a bug of ours; --debug shows where"], BUG


def as_json(error: BaseException) -> dict[str, Any]:
    """The same for machines."""
    lines, code = lines_and_code(error)
    problems = [problem._asdict() for problem in getattr(error, "problems", ())]
    return {"ok": False, "exit_code": code, "problems": problems or [{"wrong": line} for line in lines]}


def complain(error: BaseException) -> int:
    """Print the lines to stderr and give the exit code."""
    lines, code = lines_and_code(error)
    print("\n".join(lines), file=sys.stderr)
    return code


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
