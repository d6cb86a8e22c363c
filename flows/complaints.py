"""Any error as a person should meet it: its lines and its exit code, and a traceback only on request."""

from __future__ import annotations

import errno
import sys
from typing import Any, TypeGuard

from infra.redaction import redacted
from tasks.errors import FactoryError, Problem
from tasks.training.interruption import Stopped

DISK_REFUSES = frozenset({errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM})
BUG, INTERRUPTED, TERMINATED, NO_SPACE, DOWN, USAGE = 70, 130, 143, 8, 7, 2


class Terminated(BaseException):
    """SIGTERM, where nobody else hears it."""


STOPPED = {KeyboardInterrupt: INTERRUPTED, Terminated: TERMINATED}


def stop_behind(error: BaseException) -> BaseException:
    """The stop that was heard, where a failure met while it was obeyed came in its place: a service beside the command
    on its terminal hears Ctrl-C too, and is gone. An error of ours stands."""
    behind: BaseException | None = error
    seen: list[BaseException] = []  # a chain may bite its own tail
    while behind is not None and behind not in seen and not _is_ours(error) and not isinstance(error, SystemExit):
        if isinstance(behind, (*STOPPED, Stopped)):
            return behind
        seen.append(behind)
        behind = behind.__cause__ or behind.__context__
    return error


def lines_and_code(error: BaseException) -> tuple[list[str], int]:
    """What is printed, one line per problem, and the exit code."""
    if type(error) in STOPPED:
        return ["stopped; nothing half-done was kept"], STOPPED[type(error)]
    problems, code = problems_and_code(error)
    return error.lines() if _is_ours(error) else [str(problem) for problem in problems], code


def problems_and_code(error: BaseException) -> tuple[tuple[Problem, ...], int]:
    """An error of ours knows both. Of the others a full or failing disk, a name too long for a file and a silent
    service are recognised; the rest is a bug."""
    if _is_ours(error):
        return error.problems, int(error.exit_code)
    if isinstance(error, SystemExit):  # a command that has said all there is to say
        return (), int(error.code or 0)
    if hasattr(error, "format_message"):  # Typer's usage errors: it brings its own copy of Click's classes
        return _usage(error), USAGE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = str(error.filename or "disk")
        return (Problem("E-STORE-006", where, "no space left", "free space and run again"),), NO_SPACE
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        where, wrong = f"{str(error.filename or 'a name')[:60]}", "is too long for the name of a file"
        return (Problem("E-SPEC-049", where, wrong, "name another"),), USAGE
    if isinstance(error, OSError) and error.errno in DISK_REFUSES:
        remedy = "see to the disk and its permissions, and run again; what was written before is whole"
        where = str(error.filename or "disk")
        return (Problem("E-ENV-091", where, f"the disk refuses it ({error.strerror})", remedy),), DOWN
    if isinstance(error, ConnectionError) or type(error).__module__.startswith(("httpx", "httpcore")):
        remedy = "run again when the service is up; it is safe"
        return (Problem("E-ENV-090", "network", _first(error), remedy),), DOWN
    remedy = "this is a bug of ours; --debug shows where"
    return (Problem("E-ENV-099", type(error).__name__, _first(error), remedy),), BUG


def as_json(error: BaseException) -> dict[str, Any]:
    """The same for machines."""
    problems, code = ((), STOPPED[type(error)]) if type(error) in STOPPED else problems_and_code(error)
    return {"ok": False, "exit_code": code, "problems": [_plain(problem) for problem in problems]}


def complain(error: BaseException) -> int:
    """Print the lines to stderr and give the exit code."""
    lines, code = lines_and_code(error)
    for line in lines:
        print(redacted(line), file=sys.stderr)
    return code


def _plain(problem: Problem) -> dict[str, str]:
    return {name: redacted(str(value)) for name, value in problem._asdict().items()}


def _is_ours(error: Any) -> TypeGuard[FactoryError]:
    """Each package has error classes of its own, of one shape."""
    return hasattr(error, "exit_code") and hasattr(error, "problems") and hasattr(error, "lines")


def _usage(error: Any) -> tuple[Problem, ...]:
    """Nothing where no argument was given: the help has been shown."""
    command = error.ctx.command_path if getattr(error, "ctx", None) else "factory"
    wrong = " ".join(error.format_message().split()).rstrip(".")
    return (Problem("E-SPEC-019", command, wrong[:1].lower() + wrong[1:], f"see `{command} --help`"),) if wrong else ()


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
