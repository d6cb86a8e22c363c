"""What a training run leaves behind to be read: one record per step, one per look at the validation rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One optimiser step. `loss` in nats per learned token (or per row, for classes); `tokens` without padding."""

    step: int
    loss: float
    rate: float
    grad_norm: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Look:
    """One reading of the validation rows, after `step` steps. `score` is the share of learned tokens (or classes) that
    are the likeliest; None in curves from elsewhere."""

    step: int
    loss: float
    score: float | None = None


@dataclass(frozen=True)
class Curve:
    """All that a run showed, in order of steps.

    Attributes:
        start_loss: the validation loss before the first step.
        blind_loss: what a model reaches that knows how often each answer token (or class) occurs and reads no prompt.
        norms_known: whether gradient norms were recorded; of a run from elsewhere they may not be.
        may_skip: whether a step whose gradient is no number may have been left out, as loss scaling in fp16 does.
        kept_from: the first step whose adapter may be kept; a method that cuts ranks has not cut enough before.
    """

    steps: tuple[Step, ...]
    looks: tuple[Look, ...]
    planned_steps: int
    start_loss: float | None = None
    kept_from: int = 0
    blind_loss: float | None = None
    norms_known: bool = True
    may_skip: bool = False

    @property
    def best(self) -> Look | None:
        """The look with the lowest validation loss of those that may be kept, the first of equals."""
        numbers = [look for look in self.looks if not math.isnan(look.loss) and look.step >= self.kept_from]
        return min(numbers, key=lambda look: (look.loss, look.step), default=None)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def blind_loss(targets: Iterable[Iterable[int]]) -> float | None:
    """Entropy of the learned tokens' (or classes') frequencies, in nats; None where nothing is learned.

    >>> f"{blind_loss([[7], [7], [8], [8]]):.3f}", blind_loss([[7], [7]])
    ('0.693', 0.0)
    """
    counts = Counter(token for target in targets for token in target)
    total = counts.total()
    return sum(n / total * math.log(total / n) for n in counts.values()) if total else None
