from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.retrain import RetrainOutcome


def outcome(base: tuple[float, float], champion: tuple[float, float]) -> Any:
    """Scores (old, fresh); the old rows lie in two slices."""

    def scores(old: float, fresh: float) -> dict[str, Any]:
        of = lambda score, n: SimpleNamespace(score=score, n=n)  # noqa: E731
        return {"fresh": of(fresh, 50), "test of a": of(old - 0.1, 30), "test of b": of(old + 0.1, 30)}

    people = {"base": scores(*base), "champion": scores(*champion), "candidate": scores(*champion)}
    nothing: Any = None
    return RetrainOutcome(nothing, nothing, people, "fresh", nothing, False)


@pytest.mark.parametrize(
    ("base", "champion", "cause"),
    [
        ((0.5, 0.3), (0.9, 0.7), "the rows are harder"),
        ((0.5, 0.5), (0.9, 0.7), "what the champion learned fits less"),
        ((0.5, 0.6), (0.9, 0.7), "what the champion learned fits less"),
    ],
)
def test_a_fall_of_the_base_too_means_the_data_and_not_the_adapter(
    base: tuple[float, float], champion: tuple[float, float], cause: str
) -> None:
    said = outcome(base, champion).blame
    assert said.endswith(cause)
    assert "champion fell from 0.900 on the old rows to 0.700" in said
    assert f"base went from {base[0]:.3f} to {base[1]:.3f}" in said


def test_nobody_is_blamed_where_nothing_fell() -> None:
    assert outcome((0.5, 0.2), (0.8, 0.8)).blame == ""
