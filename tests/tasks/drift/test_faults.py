from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tasks.drift.faults import FAULTS, faults_of
from tasks.drift.observed import Observed

ROWS = 120
BREAKS: dict[str, Callable[[Observed, Observed], Observed]] = {
    "blank inputs": lambda old, new: replace(new, inputs=("  ",) * 40 + new.inputs[40:]),
    "one input": lambda old, new: replace(new, inputs=("the form did not load",) * 70 + new.inputs[70:]),
    "duplicates": lambda old, new: replace(new, inputs=new.inputs[:40] * 3),
    "broken characters": lambda old, new: replace(new, inputs=tuple(f"{text}�" for text in new.inputs)),
    "blank answers": lambda old, new: replace(new, predictions=("",) * 50 + new.predictions[50:]),
    "one answer": lambda old, new: replace(new, predictions=("billing",) * ROWS),
    "confidence out of range": lambda old, new: replace(new, confidences=(float("nan"),) * 20 + new.confidences[20:]),
    "stuck confidence": lambda old, new: replace(new, confidences=(0.5,) * ROWS),
    "outcome out of range": lambda old, new: replace(new, outcomes=(7.0,) * 20 + new.outcomes[20:]),
    "one sender": lambda old, new: replace(new, sources=("partner-9",) * 112 + new.sources[112:]),
    "echoed labels": lambda old, new: replace(new, labels=new.predictions, outcomes=(1.0,) * ROWS),
    "foreign script": lambda old, new: replace(new, inputs=tuple(f"заказ {text[:3]} не пришёл" for text in new.inputs)),
    "unknown words": lambda old, new: replace(new, inputs=tuple(f"x{t[::-1].replace(' ', ' q')}" for t in new.inputs)),
    "repeats of the reference": lambda old, new: replace(new, inputs=old.inputs[:ROWS]),
}  # fmt: skip


def sent(seen: Observed) -> Observed:
    return replace(seen, sources=tuple(f"shop-{row % 5}" for row in range(seen.rows)))


@pytest.mark.parametrize("fault", [fault.name for fault in FAULTS])
def test_a_window_with_a_fault_is_accused_of_it(fault: str, desk) -> None:
    reference, window = sent(desk().seen(300, 0)), sent(desk().seen(ROWS, 1))
    assert faults_of(reference, window, seed=0) == ()
    found = faults_of(reference, BREAKS[fault](reference, window), seed=0)
    assert fault in {one.fault.name for one in found}


@pytest.mark.parametrize(
    "fault",
    ["blank inputs", "one input", "duplicates", "broken characters", "blank answers", "one answer", "one sender"],
)
def test_a_defect_that_the_reference_has_as_well_is_no_fault(fault: str, desk) -> None:
    reference, window = sent(desk().seen(ROWS, 0)), sent(desk().seen(ROWS, 1))
    usual = BREAKS[fault](window, reference)
    found = {one.fault.name for one in faults_of(usual, BREAKS[fault](usual, window), seed=0)}
    assert fault not in found


def test_repeats_are_compared_with_a_reference_of_the_same_size(desk) -> None:
    """In 2,000 rows of 400 texts most repeat another; in 60 of them hardly any does."""
    texts = desk().seen(400, 0).inputs
    chance = np.random.default_rng(0)
    reference = desk().seen(2000, 1)
    reference = replace(reference, inputs=tuple(texts[i] for i in chance.integers(0, 400, 2000)))
    fresh = replace(desk().seen(60, 2), inputs=tuple(f"{text} again" for text in desk().seen(60, 3).inputs))
    assert "duplicates" not in {one.fault.name for one in faults_of(reference, fresh, seed=0)}
    copied = replace(fresh, inputs=fresh.inputs[:24] + fresh.inputs[:24] + fresh.inputs[:12])
    assert "duplicates" in {one.fault.name for one in faults_of(reference, copied, seed=0)}


def test_a_sender_that_is_the_only_one_is_no_fault(desk) -> None:
    """A task with one customer names it in every row."""
    window = replace(desk().seen(ROWS, 1), sources=("web",) * ROWS)
    assert faults_of(desk().seen(300, 0), window, seed=0) == ()


def test_true_labels_are_not_taken_for_echoes_of_a_good_adapter(desk) -> None:
    for seed in range(20):
        reference, window = desk(skill=0.97).seen(300, seed), desk(skill=0.985).seen(ROWS, 900 + seed)
        assert faults_of(reference, window, seed=seed) == ()


def test_nothing_can_be_said_of_no_rows(desk) -> None:
    empty = desk().seen(0, 0)
    assert faults_of(empty, empty, seed=0) == faults_of(desk().seen(50, 0), empty, seed=0) == ()


def test_ordinary_windows_of_every_size_are_not_accused(desk) -> None:
    chance = np.random.default_rng(0)
    for seed in range(40):
        reference, window = desk().seen(200, seed), desk().seen(int(chance.integers(20, 300)), 500 + seed)
        assert faults_of(sent(reference), sent(window), seed=seed) == ()
