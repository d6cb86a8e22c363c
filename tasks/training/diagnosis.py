"""A run's curve, read: what happened, the figures that say so, and what to change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tasks.training.curve import Curve

NOT_A_NUMBER = "halve the learning rate; look at the rows of that step"


@dataclass(frozen=True)
class Finding:
    """One reading of a curve. `fatal` runs are never registered."""

    cause: str
    evidence: str
    remedy: str
    fatal: bool = False

    @property
    def sentence(self) -> str:
        return f"{self.cause}: {self.evidence}" + (f"; {self.remedy}" if self.remedy else "")


def diagnose(curve: Curve, change: float | None = None) -> tuple[Finding, ...]:
    """What a curve says, worst first; never empty.

    Args:
        change: largest difference between the answers after and before the run; 0 is fatal.

    The loss of a step is noisy, so beginnings and ends are medians over a tenth of the steps (at least three). A rate
    that is far too high has ruined the adapter by then: the loss before the first step is held against the end too.
    """
    losses = [step.loss for step in curve.steps]
    norms = [step.grad_norm for step in curve.steps]
    if not losses:
        return (Finding("no steps", "the run ended before its first step", "give it rows", fatal=True),)
    norms_known = len(norms) == 1 or not all(
        map(math.isnan, norms)
    )  # one from elsewhere may have none; ours ends at a NaN
    broken = (s for s in curve.steps if not (math.isfinite(s.loss) and (math.isfinite(s.grad_norm) or not norms_known)))
    if bad := next(broken, None):
        evidence = f"loss {bad.loss:.3g}, gradient norm {bad.grad_norm:.3g} at step {bad.step}"
        return (Finding("not a number", evidence, NOT_A_NUMBER, fatal=True),)
    if blind := next((look for look in curve.looks if not math.isfinite(look.loss)), None):
        evidence = f"validation loss {blind.loss:.3g} at step {blind.step}"
        return (Finding("not a number", evidence, NOT_A_NUMBER, fatal=True),)
    if norms_known and max(norms) == 0:
        remedy = "check that completions are not empty"
        return (Finding("no gradient", "its norm is 0 at every step", remedy, fatal=True),)
    if change == 0:
        evidence = f"after {len(losses)} steps every answer is what it was before the first"
        return (
            Finding("identical to the base", evidence, "raise the learning rate, or adapt other modules", fatal=True),
        )
    span = max(3, len(losses) // 10)
    first, last, lowest = _median(losses[:span]), _median(losses[-span:]), min(_rolling(losses, span))
    untouched = first if curve.start_loss is None else min(first, curve.start_loss)
    findings = []
    if last > 1.5 * untouched or (last > 2 * lowest + 0.1 and last > 0.5 * first):
        evidence = f"loss {untouched:.3f} at the start, {lowest:.3f} at best, {last:.3f} at the end"
        findings.append(Finding("diverged", evidence, "lower the learning rate by 3", fatal=last > 1.5 * untouched))
    elif last > 0.97 * first:
        evidence = f"training loss went from {first:.3f} to {last:.3f} in {len(losses)} steps"
        findings.append(Finding("did not move", evidence, "raise the learning rate by 3, or adapt more modules"))
    if curve.looks and (best := curve.best) is not None:
        final = curve.looks[-1]
        if final.loss > 1.05 * best.loss + 0.01 and best.step < final.step and last < first:
            rise = f"from {best.loss:.3f} at step {best.step} to {final.loss:.3f} at {final.step}"
            remedy = "the adapter of the best step is kept; fewer steps or more dropout"
            findings.append(Finding("overfit", f"validation loss rose {rise}", remedy))
        elif _still_falling([look.loss for look in curve.looks]):
            before = curve.looks[-2]
            evidence = f"validation loss still fell from {before.loss:.3f} to {final.loss:.3f} at the end"
            findings.append(Finding("still improving", evidence, "more steps would help"))
    if not findings:
        loss = f", validation loss {curve.best.loss:.3f} at step {curve.best.step}" if curve.best else ""
        findings.append(Finding("healthy", f"training loss fell from {first:.3f} to {last:.3f}{loss}", ""))
    return tuple(findings)


def _still_falling(looks: Sequence[float]) -> bool:
    """Whether the last look gained more than a twentieth of the loss, and every look before it gained too."""
    return len(looks) >= 3 and looks[-1] < 0.95 * looks[-2] and all(b < a for a, b in pairwise(looks))


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _rolling(values: Sequence[float], span: int) -> list[float]:
    return [_median(values[i : i + span]) for i in range(max(1, len(values) - span + 1))]
