"""What a person sees when something is wrong: one line per problem, and an exit code that a script can act on.

E-<AREA>-<nnn> <where>: <what is wrong, what was found> -> <what to do>
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

SHOWN = 20


class Problem(NamedTuple):
    """One thing that is wrong. `where` is `file`, `file:row` or `file:row:field`; empty parts are left out.

    >>> str(Problem("E-DATA-004", "a.csv:7:label", "'Pos ' is not a label", "write 'pos'"))
    "E-DATA-004 a.csv:7:label: 'Pos ' is not a label -> write 'pos'"
    """

    code: str
    where: str
    wrong: str
    remedy: str

    def __str__(self) -> str:
        place = f" {self.where}" if self.where else ""
        return f"{self.code}{place}: {self.wrong} -> {self.remedy}"


class FactoryError(Exception):
    """All problems of one input together. Subclasses fix the exit code."""

    exit_code = 70

    def __init__(self, *problems: Problem) -> None:
        self.problems: tuple[Problem, ...] = problems
        super().__init__("\n".join(self.lines()))

    def __reduce__(self) -> tuple[type[FactoryError], tuple[Problem, ...]]:
        """It crosses to another process with all its problems."""
        return type(self), self.problems

    def lines(self) -> list[str]:
        shown = [str(problem) for problem in self.problems[:SHOWN]]
        more = len(self.problems) - SHOWN
        return [*shown, f"... and {more} more"] if more > 0 else shown

    @classmethod
    def one(cls, code: str, where: object, wrong: str, remedy: str) -> FactoryError:
        return cls(Problem(code, str(where), wrong, remedy))


class SpecRefused(FactoryError, ValueError):
    """The request itself is wrong: a spec, an argument, a name."""

    exit_code = 2


class DataRefused(FactoryError, ValueError):
    """The data cannot be trusted."""

    exit_code = 3


class ArtifactRefused(FactoryError, ValueError):
    """A base, an adapter or a model is not what it says."""

    exit_code = 4


class GateRefused(FactoryError, RuntimeError):
    """The work was done, and the result is not good enough."""

    exit_code = 5


class DependencyDown(FactoryError, ConnectionError):
    """A service or a hub does not answer; a retry is safe."""

    exit_code = 7


def raise_if_any(kind: type[FactoryError], problems: Iterable[Problem]) -> None:
    """Refuse with all problems at once, or return.

    Raises:
        kind: if there is at least one problem.
    """
    found = tuple(problems)
    if found:
        raise kind(*found)
