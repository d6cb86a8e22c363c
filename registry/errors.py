"""What a person sees when memory refuses: one line per problem, and an exit code that a script can act on.

    E-<AREA>-<nnn> <where>: <what is wrong, what was found> -> <what to do>

The shape is the same in every package: `exit_code`, `problems`, `lines()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

SHOWN = 20


class Problem(NamedTuple):
    """One thing that is wrong; an empty `where` is left out.

    >>> str(Problem("E-LEDGER-003", "triage", "has no champion", "promote a version"))
    'E-LEDGER-003 triage: has no champion -> promote a version'
    """

    code: str
    where: str
    wrong: str
    remedy: str

    def __str__(self) -> str:
        place = f" {self.where}" if self.where else ""
        return f"{self.code}{place}: {self.wrong} -> {self.remedy}"


class RegistryError(Exception):
    """All problems of one request together. Subclasses fix the exit code; this one says the fault is ours."""

    exit_code = 70

    def __init__(self, *problems: Problem) -> None:
        self.problems: tuple[Problem, ...] = problems
        super().__init__(*problems)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __reduce__(self) -> tuple[type[Self], tuple[Problem, ...], dict[str, object]]:
        return type(self), self.problems, self.__dict__

    def lines(self) -> list[str]:
        shown = [str(problem) for problem in self.problems[:SHOWN]]
        more = len(self.problems) - SHOWN
        return [*shown, f"... and {more} more"] if more > 0 else shown

    @classmethod
    def one(cls, code: str, where: object, wrong: str, remedy: str) -> Self:
        return cls(Problem(code, str(where), wrong, remedy))


class Unknown(RegistryError, LookupError):
    """A name, a version, an alias or a digest that the ledger does not hold."""

    exit_code = 2


class Unstable(RegistryError, TypeError):
    """A value without stable bytes was to be given an identity."""

    exit_code = 2


class DraftRefused(RegistryError, ValueError):
    """A record that leaves out what may not be forgotten, or contradicts itself."""

    exit_code = 2


class IntegrityError(RegistryError, ValueError):
    """Bytes are not what their hash says, or not what may be stored."""

    exit_code = 4


class Conflict(RegistryError, RuntimeError):
    """Someone was faster. `champion` is the number that stands now, where that is what the conflict is about."""

    exit_code = 6
    champion: int | None = None


class DependencyDown(RegistryError, ConnectionError):
    """The database or MLflow does not answer; a retry is safe."""

    exit_code = 7


class NoSpace(RegistryError, OSError):
    """The disk is full; nothing was published."""

    exit_code = 8


def raise_if_any(kind: type[RegistryError], problems: Iterable[Problem]) -> None:
    """Refuse with all problems at once, or return.

    Raises:
        kind: if there is at least one problem.
    """
    found = tuple(problems)
    if found:
        raise kind(*found)
