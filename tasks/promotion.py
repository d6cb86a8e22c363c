"""The gates between a candidate and the traffic: pure functions of row-by-row outcomes; torch-free.

A gate is decided by a bound, never by a point: with few rows a lucky candidate looks better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.errors import GateRefused, Problem
from tasks.evaluation.comparison import gain, interval
from tasks.specs import GateSpec, MergeGateSpec


@dataclass(frozen=True)
class Gate:
    """One question and its answer. `bound` must exceed `required`."""

    name: str
    measured: float
    bound: float
    required: float
    n: int
    passed: bool

    @property
    def sentence(self) -> str:
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


def beats_base(candidate: Sequence[float], base: Sequence[float], gates: GateSpec) -> Gate:
    """The candidate answers the test rows better than the untouched base."""
    return _gate("gain over the base", candidate, base, gates.beat_base_by, gates)


def keeps_slice(name: str, candidate: Sequence[float], champion: Sequence[float], gates: GateSpec) -> Gate:
    """The candidate is not worse than the champion on an earlier frozen slice by more than the margin."""
    return _gate(f"kept on {name}", candidate, champion, -gates.max_forgetting, gates)


def gains_on_fresh(candidate: Sequence[float], champion: Sequence[float], gates: GateSpec) -> Gate:
    """The candidate is better than the champion where the traffic is now."""
    return _gate("gain on fresh rows", candidate, champion, gates.min_gain_on_fresh, gates)


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
    above = gain(merged, floor)
    expert_gain = max(gain(expert, base).mean, 1e-9)
    bound = share + above.low / expert_gain
    passed = above.low > 0 and len(merged) >= gates.min_rows
    return Gate(f"retention on {task}", retention(merged, expert, base), bound, share, len(merged), passed)


def judge(candidate: str, gates: Mapping[str, Gate] | Sequence[Gate]) -> Decision:
    """The decision over gates."""
    return Decision(candidate, tuple(gates.values() if isinstance(gates, Mapping) else gates))


def _gate(name: str, new: Sequence[float], old: Sequence[float], required: float, gates: GateSpec) -> Gate:
    difference = gain(new, old, gates.confidence)
    enough = difference.n >= gates.min_rows
    return Gate(name, difference.mean, difference.low, required, difference.n, enough and difference.low > required)


def score_line(outcomes: Sequence[float]) -> str:
    """A score as people read it.

    >>> score_line([1.0] * 94 + [0.0] * 6)
    '0.940 [0.875, 0.972] n=100'
    """
    found = interval(outcomes)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] n={found.n}"
