"""Change seen row by row, while windows fill: a detector is a frozen value, and `after` gives the next one.

The value is plain numbers, so it is stored beside the finding and goes on where it stood. ADWIN and KSWIN are river's;
their value is the stretch of the stream that they still look at.

    watch = Detector.named("cusum", usual=0.93)
    watch = watch.after([1, 1, 0, 1])
    watch.alarm_at                      # the number of the row, counted from 0, at which it rang; None so far
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

LONGEST = 2000  # rows of the stream that ADWIN and KSWIN keep
State = tuple[float, ...]


@dataclass(frozen=True)
class Detector:
    """One detector over outcomes in [0, 1]. `usual` is the reference's mean; `seen` counts rows; an alarm stays."""

    name: str
    usual: float
    state: State = ()
    seen: int = 0
    alarm_at: int | None = None

    @classmethod
    def named(cls, name: str, *, usual: float) -> Self:
        """A detector that has seen nothing.

        Raises:
            KeyError: for a name that is not in `DETECTORS`.
        """
        return cls(DETECTORS[name].name, usual, DETECTORS[name].first)

    def after(self, outcomes: Sequence[float]) -> Self:
        """The detector after these rows, in their order; rows after an alarm change nothing but the count."""
        if self.alarm_at is not None or not outcomes:
            return replace(self, seen=self.seen + len(outcomes))
        state, place = DETECTORS[self.name].follow(self.state, self.usual, [float(value) for value in outcomes])
        alarm_at = None if place is None else self.seen + place
        return replace(self, state=state, seen=self.seen + len(outcomes), alarm_at=alarm_at)


Follow = Callable[[State, float, list[float]], tuple[State, int | None]]


def _cusum(state: State, usual: float, outcomes: list[float]) -> tuple[State, int | None]:
    """The log-likelihood ratio of a fall to `usual` - 0.1 against `usual`, never below 0, rings above `CUSUM_LIMIT`."""
    (total,) = state
    good = min(max(usual, 0.05), 0.99)
    bad = max(good - 0.1, 0.01)
    right, wrong = math.log(bad / good), math.log((1 - bad) / (1 - good))
    for place, value in enumerate(outcomes):
        total = max(0.0, total + value * right + (1 - value) * wrong)
        if total > CUSUM_LIMIT:
            return (total,), place
    return (total,), None


def _page_hinkley(state: State, usual: float, outcomes: list[float]) -> tuple[State, int | None]:
    """How far the sum of (mean so far - outcome - slack) has risen above its lowest value."""
    count, mean, total, lowest = state
    for place, value in enumerate(outcomes):
        count += 1
        mean += (value - mean) / count
        total += mean - value - SLACK
        lowest = min(lowest, total)
        if count >= WARM_UP and total - lowest > PAGE_HINKLEY_LIMIT:
            return (count, mean, total, lowest), place
    return (count, mean, total, lowest), None


def _kept(make: Callable[[], Any]) -> Follow:
    """A detector of river, fed again with what it still looks at."""

    def follow(state: State, usual: float, outcomes: list[float]) -> tuple[State, int | None]:
        detector = make()
        for value in state:
            detector.update(value)
        for place, value in enumerate(outcomes):
            detector.update(value)
            if detector.drift_detected:
                return (*state, *outcomes)[-LONGEST:], place
        return (*state, *outcomes)[-LONGEST:], None

    return follow


def _adwin() -> Any:
    from river.drift import ADWIN

    return ADWIN(delta=0.0005)


def _kswin() -> Any:
    from river.drift import KSWIN

    return KSWIN(alpha=1e-4, window_size=150, stat_size=50, seed=0)


CUSUM_LIMIT = 6.0
SLACK, WARM_UP, PAGE_HINKLEY_LIMIT = 0.02, 30, 12.0


@dataclass(frozen=True)
class Row:
    """A row of the catalogue."""

    name: str
    title: str
    paper: str
    first: State
    follow: Follow


DETECTORS: Mapping[str, Row] = MappingProxyType({row.name: row for row in (
    Row("cusum", "cumulative sum of log-likelihood ratios", "Page 1954, Biometrika 41(1/2)", (0.0,), _cusum),
    Row("page_hinkley", "Page-Hinkley", "Hinkley 1971, Biometrika 58(3)", (0.0, 0.0, 0.0, 0.0), _page_hinkley),
    Row("adwin", "adaptive windowing", "Bifet & Gavalda 2007, SDM", (), _kept(_adwin)),
    Row("kswin", "Kolmogorov-Smirnov windowing", "Raab et al. 2020, Neurocomputing 416", (), _kept(_kswin)),
)})  # fmt: skip
