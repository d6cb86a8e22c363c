"""The answer to "did it drift?": a verdict with its evidence, readable as one line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tasks.drift.estimate import Estimate
from tasks.drift.statistics import STATISTICS
from tasks.evaluation.comparison import Interval

Verdict = Literal[
    "not enough data",
    "no drift",
    "input shift",
    "new topic",
    "label shift",
    "concept shift",
    "performance loss",
    "pipeline fault",
]
Action = Literal["nothing", "watch", "ask for labels", "retrain with replay", "new adapter", "stop and look"]


@dataclass(frozen=True)
class Evidence:
    """One signal: its effect, the effect from which it counts (`threshold`), the p-value before the correction, whether
    it moved (effect reached and p-value significant after the correction), and what shows it."""

    signal: str
    statistic: str
    value: float
    threshold: float
    p: float | None
    moved: bool
    examples: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What moved, with its figures and the first two examples.

        >>> Evidence("vocabulary", "js_rows", 0.121, 0.003, 0.0006, True, ("'pluto' in 0% -> 9% of rows",)).sentence
        "vocabulary moved (0.121 bits above chance, counts from 0.003; 'pluto' in 0% -> 9% of rows)"
        """
        if self.statistic == "share":
            return f"{self.value:.0%} {self.examples[0] if self.examples else self.signal}"
        shown = "".join(f"; {example}" for example in self.examples[:2])
        verb = "moved" if self.moved else "did not move"
        unit = STATISTICS[self.statistic].unit
        return f"{self.signal} {verb} ({self.value:.3g} {unit}, counts from {self.threshold:.3g}{shown})"


@dataclass(frozen=True)
class DriftReport:
    """The judgement of one window. Scores are None where too few rows are graded; no figure is ever NaN.

    `drop_low` is the lower 95 % bound of the fall. `n` counts the window's rows, `graded` those with an outcome.
    `score_estimated` is what the confidences suggest for rows that nobody graded, as (score, low, high). `because` says
    why there is no such judgement, or what broke. `to_label` are positions of window rows, most telling first, where
    labels are asked for. `reach` is what the untouched base, told the window's labels, would answer better than the
    served adapter, where that was asked.
    """

    verdict: Verdict
    action: Action
    score_reference: float | None
    score_window: float | None
    drop_low: float | None
    evidence: tuple[Evidence, ...]
    n: int
    graded: int = 0
    n_reference: int = 0
    score_estimated: Estimate | None = None
    because: str = ""
    to_label: tuple[int, ...] = ()
    reach: Interval | None = None

    @property
    def moved(self) -> tuple[Evidence, ...]:
        return tuple(one for one in self.evidence if one.moved)

    @property
    def expected_gain(self) -> float | None:
        """What a retrain would gain if it brought the score back to the reference's, or up to what is within reach,
        whichever is more; None where nothing is graded."""
        if self.score_reference is None or self.score_window is None:
            return None
        return max(self.score_reference - self.score_window, self.reach.mean if self.reach else -1.0)

    @property
    def sentence(self) -> str:
        """The verdict in one plain line: cause, cost, evidence, action."""
        causes = [one.sentence for one in self.moved if one.signal != "score"]
        parts = [self.because] if self.because else [self._cost(), *self._promise(), *causes[:3]]
        return f"{self.verdict}: {'; '.join(parts)}; {self.action}"

    def _cost(self) -> str:
        if self.score_reference is not None and self.score_window is not None and self.drop_low is not None:
            fell = self.drop_low > 0
            bound = f", 95 % bound of the fall {self.drop_low:.2f}" if fell else ""
            change = f"{'fell' if fell else 'went'} from {self.score_reference:.2f} to {self.score_window:.2f}"
            return f"score {change} (n={self.graded:,}{bound})"
        known = f"score not measured ({self.graded} of {self.n} rows graded)"
        if self.score_estimated is None:
            return known
        guess = self.score_estimated
        return f"{known}, confidence suggests {guess.score:.2f} ({guess.low:.2f} to {guess.high:.2f})"

    def _promise(self) -> tuple[str, ...]:
        if self.reach is None or self.reach.low <= 0:
            return ()
        return (f"the untouched base, told these labels, gains {self.reach.mean:.2f} (bound {self.reach.low:.2f})",)

    def payload(self) -> dict[str, Any]:
        """Plain values for JSON: every field and the sentence."""
        return {
            **asdict(self),
            "score_estimated": self.score_estimated and list(self.score_estimated),
            "expected_gain": self.expected_gain,
            "sentence": self.sentence,
        }
