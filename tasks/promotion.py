"""The gates between a candidate and the traffic: pure functions of row-by-row outcomes; torch-free.

A gate is decided by a bound, never by a point: with few rows a lucky candidate looks better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.errors import GateRefused, Problem
from tasks.evaluation.comparison import gain, interval
from tasks.specs import AnswerGateSpec, GateSpec, MergeGateSpec


@dataclass(frozen=True)
class Gate:
    """One question and its answer. `bound` must exceed `required`."""

    name: str
    measured: float
    bound: float
    required: float
    n: int
    passed: bool
    fewest: int = 0

    @property
    def sentence(self) -> str:
        if self.n < self.fewest:
            return f"{self.name}: {self.n} rows judge, fewer than the {self.fewest} of gates.min_rows"
        sign = "above" if self.passed else "not above"
        return f"{self.name}: {self.measured:+.3f} (bound {self.bound:+.3f}, n={self.n}), {sign} {self.required:+.3f}"


@dataclass(frozen=True)
class Decision:
    """All gates of one candidate."""

    candidate: str
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    @property
    def sentence(self) -> str:
        failed = [gate.sentence for gate in self.gates if not gate.passed]
        return "every gate passed" if not failed else "; ".join(failed)

    def refuse_unless_passed(self) -> None:
        """
        Raises:
            GateRefused: one problem per gate that failed.
        """
        if not self.passed:
            remedy = "more data, more replay or another recipe; the champion stays"
            problems = [Problem("E-GATE-001", self.candidate, g.sentence, remedy) for g in self.gates if not g.passed]
            raise GateRefused(*problems)


def beats_base(candidate: Sequence[float], base: Sequence[float], gates: GateSpec, on: str = "") -> Gate:
    """The candidate answers the test rows better than the untouched base; `on` names one slice of several."""
    return _gate(
        f"gain over the base on {on}" if on else "gain over the base", candidate, base, gates.beat_base_by, gates
    )


def keeps_slice(name: str, candidate: Sequence[float], champion: Sequence[float], gates: GateSpec) -> Gate:
    """The candidate is not worse than the champion on an earlier frozen slice by more than the margin."""
    return _gate(f"kept on {name}", candidate, champion, -gates.max_forgetting, gates)


def gains_on_fresh(candidate: Sequence[float], champion: Sequence[float], gates: GateSpec) -> Gate:
    """The candidate is better than the champion where the traffic is now."""
    return _gate("gain on fresh rows", candidate, champion, gates.min_gain_on_fresh, gates)


def calibrated(confidences: Sequence[float], outcomes: Sequence[float], gates: AnswerGateSpec, on: str = "") -> Gate:
    """How sure the model says it is agrees with how often it is right.

    Expected calibration error over ten bins of equal mass (Naeini et al. 2015), with the upper bound of a bootstrap
    over rows at the gates' confidence; both with a minus, because a bound must exceed what is required.
    """
    import numpy as np

    required, name = -float(gates.max_calibration_error or 0.0), f"calibration on {on}" if on else "calibration"
    n = len(outcomes)
    if n < gates.min_rows or len(confidences) != n:
        return Gate(name, -1.0, -1.0, required, n, False, gates.min_rows)
    sure, right = np.asarray(confidences, dtype=float), np.asarray(outcomes, dtype=float)
    draws = np.random.default_rng(0).integers(0, n, size=(500, n))
    errors = [_calibration_error(sure[rows], right[rows]) for rows in draws]
    bound = -float(np.quantile(errors, gates.confidence))
    return Gate(name, -_calibration_error(sure, right), bound, required, n, bound >= required)


def answers_in_time(seconds: Sequence[float], gates: AnswerGateSpec, on: str = "") -> Gate:
    """95 % of single answers come in time: the bound is the order statistic that lies above the 95 % quantile of all
    answers with the gates' confidence (binomial, without a distribution); with too few rows there is none."""
    from scipy.stats import binom

    required, n, ordered = -float(gates.max_answer_seconds or 0.0), len(seconds), sorted(seconds)
    name = f"seconds of an answer on {on}" if on else "seconds of an answer"
    place = int(binom.ppf(gates.confidence, n, 0.95)) + 1 if n else 1
    if n < gates.min_rows or place > n:
        return Gate(name, -(ordered[-1] if n else 0.0), -float("1e9"), required, n, False, gates.min_rows)
    measured = ordered[min(n - 1, int(0.95 * n))]
    bound = -float(ordered[place - 1])
    return Gate(name, -measured, bound, required, n, bound >= required)


def retention(merged: Sequence[float], expert: Sequence[float], base: Sequence[float]) -> float:
    """Share of the expert's gain over the base that the merged model keeps; 1 where the expert gained nothing.

    >>> retention([1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0])
    0.5
    """
    expert_gain = gain(expert, base).mean
    return 1.0 if expert_gain <= 0 else gain(merged, base).mean / expert_gain


def keeps_share(
    task: str, merged: Sequence[float], expert: Sequence[float], base: Sequence[float], gates: MergeGateSpec
) -> Gate:
    """The merged model keeps at least the stated share of one task's gain.

    The bound is that of merged - ((1 - share) base + share expert) >= 0, over the same rows: a ratio of two noisy gains
    has no honest interval where the expert's gain is small, this difference has.
    """
    share = gates.min_retention
    floor = [(1 - share) * b + share * e for b, e in zip(base, expert, strict=True)]
    above = gain(merged, floor, gates.confidence)
    expert_gain = max(gain(expert, base).mean, 1e-9)
    bound = share + above.low / expert_gain
    passed = above.low > 0 and len(merged) >= gates.min_rows
    return Gate(
        f"retention on {task}", retention(merged, expert, base), bound, share, len(merged), passed, gates.min_rows
    )


def judge(candidate: str, gates: Mapping[str, Gate] | Sequence[Gate]) -> Decision:
    """The decision over gates."""
    return Decision(candidate, tuple(gates.values() if isinstance(gates, Mapping) else gates))


def _calibration_error(sure: Any, right: Any) -> float:
    """Mean over ten bins of equal mass of |mean confidence - share of right answers|; arrays of one length."""
    import numpy as np

    order = np.argsort(sure, kind="stable")
    gaps = [(abs(sure[rows].mean() - right[rows].mean()), len(rows)) for rows in np.array_split(order, 10) if len(rows)]
    return float(sum(gap * size for gap, size in gaps) / len(sure))


def _gate(name: str, new: Sequence[float], old: Sequence[float], required: float, gates: GateSpec) -> Gate:
    difference = gain(new, old, gates.confidence)
    passed = difference.n >= gates.min_rows and difference.low > required
    return Gate(name, difference.mean, difference.low, required, difference.n, passed, gates.min_rows)


def score_line(outcomes: Sequence[float]) -> str:
    """A score as people read it.

    >>> score_line([1.0] * 94 + [0.0] * 6)
    '0.940 [0.875, 0.972] n=100'
    """
    found = interval(outcomes)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] n={found.n}"
