"""What a person and a script see when something is refused."""

from __future__ import annotations

import re

import pytest

from tasks.errors import (
    SHOWN,
    ArtifactRefused,
    DataRefused,
    DependencyDown,
    FactoryError,
    GateRefused,
    Problem,
    SpecRefused,
    raise_if_any,
)

PROBLEM = Problem("E-DATA-004", "a.csv:7:label", "'Pos ' is not a label", "write 'pos'")


def test_each_kind_has_its_own_exit_code_and_a_parent_that_others_catch() -> None:
    kinds = {SpecRefused: (2, ValueError), DataRefused: (3, ValueError), ArtifactRefused: (4, ValueError)}
    kinds |= {GateRefused: (5, RuntimeError), DependencyDown: (7, ConnectionError)}
    for kind, (code, parent) in kinds.items():
        assert kind.exit_code == code
        assert issubclass(kind, parent)
        assert issubclass(kind, FactoryError)
    assert FactoryError.exit_code == 70
    assert len({code for code, _ in kinds.values()}) == len(kinds)


def test_a_problem_is_one_line_of_the_agreed_form() -> None:
    assert re.fullmatch(r"E-[A-Z]+-\d{3} \S+: .+ -> .+", str(PROBLEM))
    assert str(Problem("E-SPEC-001", "", "wrong", "mend it")) == "E-SPEC-001: wrong -> mend it"


def test_all_problems_are_raised_together_or_nothing_is() -> None:
    raise_if_any(DataRefused, [])
    with pytest.raises(DataRefused) as caught:
        raise_if_any(DataRefused, (PROBLEM for _ in range(3)))
    assert caught.value.problems == (PROBLEM,) * 3
    assert str(caught.value) == "\n".join([str(PROBLEM)] * 3)


@pytest.mark.parametrize("count", [1, SHOWN, SHOWN + 1, 500])
def test_twenty_problems_are_shown_and_the_rest_counted(count: int) -> None:
    lines = DataRefused(*[PROBLEM] * count).lines()
    assert len(lines) == min(count, SHOWN + 1)
    assert lines[-1] == (str(PROBLEM) if count <= SHOWN else f"... and {count - SHOWN} more")
    assert len(DataRefused(*[PROBLEM] * count).problems) == count


def test_one_problem_can_be_raised_in_place() -> None:
    error = SpecRefused.one("E-SPEC-001", "spec.yaml", "is not there", "name it")
    assert isinstance(error, SpecRefused)
    assert error.lines() == ["E-SPEC-001 spec.yaml: is not there -> name it"]
