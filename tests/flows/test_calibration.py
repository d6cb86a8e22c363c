"""Earlier runs correct the plan of the next one: of the same family on the same device, and not one run alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from flows.calibration import CARD_BYTES, MEASURED, PLANNED, correction_of
from tasks.memory import Correction, Shapes, plan_memory
from tasks.specs import AdapterSpec

ALIKE = (("Llama", 0), ("Bert", 0), ("Llama", 24 * 10**9))


def home_with(runs: Sequence[tuple[str, float, float]]) -> Any:
    """A ledger that remembers (architecture, measured over planned, bytes of the card) of each run."""
    versions = [
        SimpleNamespace(base=family, metrics={PLANNED: 1e6, MEASURED: 1e6 * ratio, CARD_BYTES: card})
        for family, ratio, card in runs
    ]
    versions.append(SimpleNamespace(base="merged", metrics={}))
    ledger = SimpleNamespace(
        versions=lambda: versions, base=lambda digest: SimpleNamespace(architecture=digest, parameters=10**6)
    )
    return SimpleNamespace(ledger=ledger)


def test_the_middle_of_three_or_more_runs_counts_and_fewer_say_nothing() -> None:
    home = home_with([("Llama", ratio, 0) for ratio in (1.4, 9.0, 1.5)])
    assert (correction_of(home, "Llama", 10**6, 0).factor, correction_of(home, "Llama", 10**6, 0).runs) == (1.5, 3)
    assert correction_of(home_with([("Llama", 1.4, 0)] * 2), "Llama", 10**6, 0).factor == 1


def test_another_family_and_another_card_are_not_asked() -> None:
    home = home_with([("Llama", 1.5, 0)] * 3 + [("Bert", 0.8, 0)] * 3 + [("Llama", 1.2, 24e9)] * 3)
    found = [correction_of(home, family, 10**6, card).factor for family, card in ALIKE]
    assert found == [1.5, 0.8, 1.2]
    assert correction_of(home, "Bert", 10**6, 24 * 10**9).factor == 1


@pytest.mark.parametrize(("parameters", "factor"), [(10**6 // 4, 1.5), (4 * 10**6, 1.5), (5 * 10**6, 1), (10**5, 1)])
def test_what_a_small_run_took_besides_says_nothing_of_a_large_one(parameters: int, factor: float) -> None:
    assert correction_of(home_with([("Llama", 1.5, 0)] * 3), "Llama", parameters, 0).factor == factor


@pytest.mark.parametrize(("ratio", "besides"), [(100.0, 99 * 10**6), (0.25, -750_000), (2.0, 0), (0.5, 0)])
def test_what_is_more_than_doubled_or_halved_is_added_and_does_not_grow_with_the_plan(
    ratio: float, besides: int
) -> None:
    found = correction_of(home_with([("Llama", ratio, 0)] * 5), "Llama", 10**6, 0)
    assert (found.factor, found.besides) == ((1.0, besides) if besides else (ratio, 0))
    assert found.of(10**6) == round((ratio - 1) * 10**6)
    assert Correction(besides=besides).of(10**9) == besides


def test_a_correction_leaves_no_less_than_nothing() -> None:
    assert Correction(besides=-(10**6)).of(1000) == -1000


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.5])
def test_a_corrected_plan_differs_by_the_factor_above_the_base_alone(factor: float) -> None:
    shapes = Shapes({"layers.0.q_proj": (64, 64)}, 1000, 20000, {"hidden_size": 64, "num_hidden_layers": 1})
    tree: Any = {"task": "t", "kind": "generation", "base": {"model": "/b"}}
    spec = AdapterSpec.model_validate({**tree, "data": {"source": "/r", "prompt": "{a}", "completion": "{b}"}})
    asked: Any = {"available_bytes": 1 << 40, "longest_tokens": 32, "on_gpu": False, "half": False}
    plain, corrected = (
        plan_memory(spec, shapes, **asked),
        plan_memory(spec, shapes, **asked, correction=Correction(factor)),
    )
    above = sum(plain.above_base.values())
    assert sum(corrected.above_base.values()) == pytest.approx(factor * above, abs=1)
    assert corrected.peak_bytes - plain.peak_bytes == pytest.approx((factor - 1) * above, abs=1)


def test_a_process_s_first_run_remembers_what_was_planned_and_what_it_took(intent: Any, hasty: Any) -> None:
    figures = intent.outcome.version.metrics
    assert figures[PLANNED] > 0
    assert figures[MEASURED] > 0
    assert figures[CARD_BYTES] == 0
    assert PLANNED not in hasty[1].metrics  # what it took is less than it needs: blocks and kernels were there
    assert MEASURED in hasty[1].metrics
