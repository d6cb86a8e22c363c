"""Several things done in turn, of which one that is refused does not take the others down."""

from __future__ import annotations

from collections.abc import Sequence

from registry.errors import RegistryError
from tasks.errors import FactoryError

SIGNALS_FROM = 128
Refusal = FactoryError | RegistryError


def unless_stopped(error: Refusal) -> Refusal:
    """The refusal of one thing, to be told when all are done; one that says that everything is to stop is raised."""
    if error.exit_code > SIGNALS_FROM:
        raise error
    return error


def raise_together(refused: Sequence[Refusal]) -> None:
    """
    Raises:
        FactoryError, RegistryError: the problems of all, under the first one's exit code.
    """
    if refused:
        raise type(refused[0])(*(problem for error in refused for problem in error.problems))  # type: ignore[arg-type]
