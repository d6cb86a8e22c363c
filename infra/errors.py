"""What a person sees when settings, servers or the machine are wrong: one line per problem, and an exit code.

The same shape as everywhere in the factory, so that the command line prints any of them alike.
"""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """One thing that is wrong, where, and what to do.

    >>> str(Problem("E-ENV-002", "port 5000", "is taken by process 71", "stop it"))
    'E-ENV-002 port 5000: is taken by process 71 -> stop it'
    """

    code: str
    where: str
    wrong: str
    remedy: str

    def __str__(self) -> str:
        place = f" {self.where}" if self.where else ""
        return f"{self.code}{place}: {self.wrong} -> {self.remedy}"


class InfraError(Exception):
    """All problems found together. Subclasses fix the exit code."""

    exit_code = 70

    def __init__(self, *problems: Problem) -> None:
        self.problems: tuple[Problem, ...] = problems
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        return [str(problem) for problem in self.problems]


class SettingsRefused(InfraError, ValueError):
    """A FACTORY_ variable or factory.toml says something that cannot be."""

    exit_code = 2


class AlreadyRunning(InfraError, RuntimeError):
    """The servers of this home are up already."""

    exit_code = 6


class ServerDown(InfraError, ConnectionError):
    """A server cannot start or does not answer; a retry is safe."""

    exit_code = 7
