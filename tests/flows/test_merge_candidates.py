"""What a recipe asks to try, as settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from flows.merge_candidates import settings_of
from tasks.specs import MergeSpec, RuleSpec


def test_every_combination_that_a_rule_reads_is_a_setting_with_a_name_of_its_own() -> None:
    rules = (
        RuleSpec(rule="ties", scale=(0.5, 1.0), density=(0.2, 0.4), steps=(10, 20)),
        RuleSpec(rule="regmean", rows=50, steps=(10, 20)),
        RuleSpec(rule="distilled", rows=50, steps=(10, 20), scale=(0.9, 1.0)),
    )
    settings = settings_of(MergeSpec(name="one", parents=("a:1",), rules=rules))
    names = [setting.name for setting in settings]
    assert names == [
        "ties (scale 0.5, density 0.2)",
        "ties (scale 1, density 0.2)",
        "ties (scale 0.5, density 0.4)",
        "ties (scale 1, density 0.4)",
        "regmean (scale 1, 50 rows)",
        "distilled (scale 0.9, 50 rows, 10 steps)",
        "distilled (scale 1, 50 rows, 10 steps)",
        "distilled (scale 0.9, 50 rows, 20 steps)",
        "distilled (scale 1, 50 rows, 20 steps)",
    ]
    assert len(set(settings)) == len(names)


@pytest.mark.parametrize("steps", [(), (0,), (300, -1)])
def test_no_steps_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        RuleSpec(rule="distilled", steps=steps)
