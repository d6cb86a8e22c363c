"""The error contract of this package."""

from __future__ import annotations

import pickle

import pytest

from registry import errors
from registry.errors import Problem, RegistryError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RegistryError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_says_its_problems_in_one_line_each_and_has_a_known_exit_code(kind):
    problems = (Problem("E-LEDGER-001", "a", "is wrong", "mend it"), Problem("E-LEDGER-002", "", "is odd", "look"))
    error = kind(*problems)
    assert error.lines() == ["E-LEDGER-001 a: is wrong -> mend it", "E-LEDGER-002: is odd -> look"]
    assert str(error) == "\n".join(error.lines())
    assert error.exit_code in {2, 4, 6, 7, 8, 70}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_crosses_a_process_border_whole(kind):
    error = kind.one("E-LEDGER-001", "a", "is wrong", "mend it")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.problems, back.lines()) == (kind, error.problems, error.lines())


def test_at_most_twenty_problems_are_shown_and_the_rest_counted():
    error = RegistryError(*(Problem("E-LEDGER-001", str(i), "is wrong", "mend it") for i in range(33)))
    assert len(error.lines()) == 21
    assert error.lines()[-1] == "... and 13 more"
