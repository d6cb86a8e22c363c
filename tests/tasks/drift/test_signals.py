from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from tasks.drift.observed import Observed
from tasks.drift.paired import paired
from tasks.drift.signals import SIGNALS, measured
from tasks.drift.verdict import judge
from tasks.specs import DriftSpec

WORDS = ("sunny", "cloud", "rain", "wind", "storm", "mist", "frost", "heat", "snow", "hail", "calm", "gust")


def written(seen: Observed, seed: int, *, words: int = 6, vocabulary: tuple[str, ...] = WORDS) -> Observed:
    """The same requests, answered in free text by a causal model that also shows how sure it was of what."""
    chance = np.random.default_rng([seed, 5])
    texts = tuple(
        " ".join(chance.choice(vocabulary, int(chance.integers(words - 2, words + 3)))) for n in range(seen.rows)
    )
    return replace(
        seen,
        predictions=texts,
        labels=texts,
        entropies=tuple(chance.gamma(2, 0.3, seen.rows).tolist()),
        perplexities=tuple(chance.lognormal(2, 0.3, seen.rows).tolist()),
        well_formed=tuple((chance.random(seen.rows) < 0.98).tolist()),
    )


def moved(reference: Observed, window: Observed) -> set[str]:
    report = judge(reference, window, DriftSpec(), seed=0)
    return {one.signal for one in report.moved} - {"score"}


CHANGES = {
    "length of answers": {"length of answers"},
    "words of answers": {"words of answers"},
    "entropy": {"entropy"},
    "perplexity": {"perplexity"},
    "format of answers": {"format of answers"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_moved_of_the_answers_or_of_their_certainty_is_named_and_nothing_else(name: str, desk: Any) -> None:
    reference, quiet = written(desk().seen(400, 1), 1), written(desk().seen(300, 2), 2)
    other = {
        "length of answers": lambda: written(desk().seen(300, 2), 2, words=12),
        "words of answers": lambda: written(desk().seen(300, 2), 2, vocabulary=WORDS[4:]),
        "entropy": lambda: replace(quiet, entropies=tuple(2 * value for value in quiet.entropies)),
        "perplexity": lambda: replace(quiet, perplexities=tuple(2 * value for value in quiet.perplexities)),
        "format of answers": lambda: replace(quiet, well_formed=tuple(n % 5 > 0 for n in range(300))),
    }[name]()
    assert moved(reference, quiet) == set()
    assert name in moved(reference, other) <= CHANGES[name] | {"words of answers"}


def test_quiet_windows_of_a_writing_adapter_raise_no_more_alarms_than_stated(desk: Any) -> None:
    """60 windows at 5 %; a true rate of 5 % passes in 999 of 1,000 cases."""
    drift = DriftSpec(min_rows=20, false_alarm=0.05)
    alarms = 0
    for n in range(60):
        reference, window = written(desk().seen(150, n), n), written(desk().seen(60, 900 + n, labelled=False), 900 + n)
        alarms += judge(reference, replace(window, labels=(None,) * 60), drift, seed=n).verdict != "no drift"
    assert alarms <= binom.ppf(0.999, 60, 0.05)


def test_a_signal_without_values_is_left_out_and_one_value_for_all_moves_nothing(desk: Any) -> None:
    plain, still = desk().seen(100, 1), replace(desk().seen(100, 1), entropies=(0.5,) * 100)
    names = {
        s.name
        for s in SIGNALS
        if measured(s, paired(plain, plain, np.random.default_rng(0)), np.random.default_rng(0), most=99)
    }
    assert names.isdisjoint({"entropy", "perplexity", "format of answers", "length of answers", "words of answers"})
    pair = paired(still, still, np.random.default_rng(0))
    (entropy,) = [signal for signal in SIGNALS if signal.name == "entropy"]
    found = measured(entropy, pair, np.random.default_rng(0), most=99)
    assert found is None or found.p == 1.0
