"""A run's curve, read: what happened, the figures and the span of steps that say so, and what to change.

The thresholds were set on the planted runs of `benchmarks/diagnosis.py` that are not held out there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tasks.training.curve import Curve, Look

NOT_A_NUMBER = "lower the learning rate to a tenth; look at the rows of that step"
GOOD_SCORE = 0.9  # share of right answers from which a run has nothing to explain
FLAT_GAIN, FLAT_SHARE = 0.05, 0.5  # so little of the loss in so much of the run is a plateau
LOW_RANK, NARROW = 0.5, 0.5  # below this share of the usual rank, of the linear weights
SPIKE_NATS, SPIKE_SHARE = 1.5, 0.5  # above the median of its neighbours: in all, and of that median
SMALL_RISE = 0.1  # nats; a run that goes on from an adapter begins at a loss of which noise is a large part
FEWEST = 6  # points, below which the beginning of a curve is its end
BLIND_SHARE = 0.7  # of the loss of whoever knows the answers' frequencies alone: above it nothing more was learned
SWING = 1.1  # times the loss of the look before
WORSE = 1.05  # times the loss before the first step, from which it has risen
GAP = 0.3  # training loss over validation loss below which rows are known by heart


@dataclass(frozen=True)
class Reach:
    """What an adapter can change at all, beside what is usual for its data.

    Attributes:
        rank, usual_rank: as given, and as the recipe would choose it; equal where a method has no rank.
        adapted_share: of the weights of the base's linear layers, those whose layer has an adapter.
    """

    rank: int
    usual_rank: int
    adapted_share: float


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


def diagnose(curve: Curve, change: float | None = None, reach: Reach | None = None) -> tuple[Finding, ...]:
    """What a curve says, worst first; never empty.

    Args:
        change: largest difference between the answers after and before the run; 0 is fatal.
        reach: what the adapter can change; without it a limit of the adapter is told as a plateau.

    The loss of a step is noisy, so beginnings and ends are medians over a tenth of the steps (at least three). A rate
    that is far too high has ruined the adapter by then: the loss before the first step is held against the end too. One
    that is less so throws the loss up at first; then it falls to what the answers' frequencies give, and stays there.
    """
    if (broken := _broken(curve, change)) is not None:
        return (broken,)
    if len(curve.steps) < FEWEST:
        evidence = f"{len(curve.steps)}, loss {curve.steps[0].loss:.3f} to {curve.steps[-1].loss:.3f}"
        return (Finding("too few points", evidence, f"at least {FEWEST} can be read: log more often, or train longer"),)
    losses = [step.loss for step in curve.steps]
    span = max(3, len(losses) // 10)
    first, last = _median(losses[:span]), _median(losses[-span:])
    findings, overfit = [], _overfit(curve)
    diverged = _diverged(curve, losses, first, last, span)
    if diverged:
        findings.append(diverged)
    elif last > 0.97 * first and not _good(curve):
        evidence = f"training loss went from {first:.3f} to {last:.3f} in {curve.steps[-1].step} steps"
        findings.append(
            Finding("did not move", evidence, "raise the learning rate to three times, or adapt more modules")
        )
    elif not overfit:
        findings += _limits(curve, first, last, reach)
    findings += overfit
    if not diverged:
        findings += _spikes(curve)
    if not (overfit or diverged) and _still_falling([look.loss for look in curve.looks]):
        before, final = curve.looks[-2:]
        evidence = (
            f"validation loss still fell from {before.loss:.3f} at step {before.step} to {final.loss:.3f} at the end"
        )
        findings.append(Finding("still improving", evidence, "more steps would help"))
    if not findings:
        loss = f", validation loss {curve.best.loss:.3f} at step {curve.best.step}" if curve.best else ""
        findings.append(Finding("healthy", f"training loss fell from {first:.3f} to {last:.3f}{loss}", ""))
    return tuple(findings)


def _diverged(curve: Curve, losses: Sequence[float], first: float, last: float, span: int) -> Finding | None:
    """A loss that ends above its start (fatal), that lost much of what it had gained, or that was thrown far up and
    came back to little: the rate was too high."""
    lowest, highest = min(_rolling(losses, span)), max(_rolling(losses, 3))
    untouched = first if curve.start_loss is None else min(first, curve.start_loss)
    ruined = last > 1.5 * untouched + SMALL_RISE
    lost = last > 2 * lowest + 0.1 and last > 0.5 * first
    if curve.looks:
        lost = last > 1.2 * lowest + 0.05 and _lost_on_validation(curve) and not _good(curve)
    origin = losses[0] if curve.start_loss is None else curve.start_loss
    by_chance = max(SPIKE_NATS, _widest_by_chance(losses))
    thrown = highest > 1.3 * origin and highest > origin + by_chance and not _good(curve)
    remedy = "lower the learning rate to a tenth"
    if ruined or lost or thrown:
        seen = f"{untouched:.3f} at the start, {highest:.3f} at worst, {lowest:.3f} at best, {last:.3f} at the end"
        return Finding("diverged", f"loss {seen}", remedy, fatal=ruined)
    if not _is_blind(curve, last):
        return None
    low, high = _rise(losses)
    if losses[high] - losses[low] > by_chance:
        before, after = curve.steps[low], curve.steps[high]
        rose = (
            f"training loss rose from {before.loss:.3f} at step {before.step} to {after.loss:.3f} at step {after.step}"
        )
    elif curve.start_loss is not None and _end(curve, last) > WORSE * curve.start_loss:
        rose = f"loss began at {curve.start_loss:.3f}"
    else:
        return None
    return Finding("diverged", f"{rose}; {_blindness(curve, last)}", remedy)


def _widest_by_chance(losses: Sequence[float]) -> float:
    """The rise that noise alone makes somewhere in so many steps: of n draws of a normal distribution the lowest and
    the highest differ by about 2 sqrt(2 ln n) of its width, which is nearly the median difference of neighbours."""
    usual = _median([abs(after - before) for before, after in pairwise(losses[len(losses) // 2 :])])
    return 2.5 * math.sqrt(2 * math.log(len(losses))) * usual


def _rise(losses: Sequence[float]) -> tuple[int, int]:
    """Places of the two losses, the lower before the higher, that differ most."""
    low, found = 0, (0, 0)
    for i, loss in enumerate(losses):
        low = i if loss < losses[low] else low
        found = max(found, (low, i), key=lambda pair: losses[pair[1]] - losses[pair[0]])
    return found


def _is_blind(curve: Curve, last: float) -> bool:
    """Whether the run ends where a model is that knows the frequencies of the answers and reads no prompt."""
    ends = min(last, _end(curve, last))
    return curve.blind_loss is not None and not _good(curve) and ends > BLIND_SHARE * curve.blind_loss


def _blindness(curve: Curve, last: float) -> str:
    side = "validation" if curve.looks else "training"
    return (
        f"{side} loss ends at {_end(curve, last):.3f}, where the answers' frequencies alone give {curve.blind_loss:.3f}"
    )


def _end(curve: Curve, last: float) -> float:
    return curve.looks[-1].loss if curve.looks else last


def _broken(curve: Curve, change: float | None) -> Finding | None:
    """What ends the reading at once: there is nothing to keep."""
    losses = [step.loss for step in curve.steps]
    norms = [step.grad_norm for step in curve.steps]
    if not losses:
        return Finding("no steps", "the run ended before its first step", "give it rows", fatal=True)
    heard = [i for i, norm in enumerate(norms) if math.isfinite(norm)]
    skipped = range(max(heard, default=0) if curve.may_skip else 0)  # steps that the run outlived
    for i, step in enumerate(curve.steps):
        norm_counts = curve.norms_known and i not in skipped
        if not (math.isfinite(step.loss) and (math.isfinite(step.grad_norm) or not norm_counts)):
            evidence = f"loss {step.loss:.3g}, gradient norm {step.grad_norm:.3g} at step {step.step}"
            return Finding("not a number", evidence, NOT_A_NUMBER, fatal=True)
    every = f"at every step from {curve.steps[0].step} to {curve.steps[-1].step}"
    if not curve.norms_known and max(losses) == 0:
        evidence = f"loss 0 without a gradient norm {every}: so the Trainer logs a loss that is no number"
        return Finding("not a number", evidence, NOT_A_NUMBER, fatal=True)
    if blind := next((look for look in curve.looks if not math.isfinite(look.loss)), None):
        evidence = f"validation loss {blind.loss:.3g} at step {blind.step}"
        return Finding("not a number", evidence, NOT_A_NUMBER, fatal=True)
    if curve.norms_known and max(norms) == 0:
        if max(losses) == 0:
            remedy = "check that completions are not empty"
            return Finding(
                "nothing to learn", f"loss and gradient are 0 {every}: every label is masked", remedy, fatal=True
            )
        return Finding("no gradient", f"its norm is 0 {every}", "adapt other modules, or start afresh", fatal=True)
    if change == 0:
        evidence = f"after {len(losses)} steps every answer is what it was before the first"
        return Finding("identical to the base", evidence, "raise the learning rate, or adapt other modules", fatal=True)
    return None


def _spikes(curve: Curve) -> Iterator[Finding]:
    """Steps whose loss stands far above that of the steps around them, after the first fifth."""
    losses, near = [step.loss for step in curve.steps], 5
    wild = []
    for i in range(max(near, len(losses) // 5), len(losses)):
        around = losses[max(0, i - near) : i] + losses[i + 1 : i + 1 + near]
        usual = _median(around)
        if losses[i] > usual + SPIKE_NATS + SPIKE_SHARE * usual:
            wild.append((curve.steps[i], usual))
    if wild:
        (worst, usual) = max(wild, key=lambda pair: pair[0].loss)
        evidence = f"loss {worst.loss:.3f} at step {worst.step} where {usual:.3f} is usual"
        if len(wild) > 1:
            evidence += f", the highest of {len(wild)} between steps {wild[0][0].step} and {wild[-1][0].step}"
        yield Finding("spiked", evidence, "look at the rows of those steps; clip the gradient lower, or lower the rate")


def _overfit(curve: Curve) -> list[Finding]:
    """The validation loss rose from its best while the training loss fell on, or stays far above it."""
    best = curve.best
    if best is None:
        return []
    remedy = f"the best adapter is that of step {best.step}; fewer steps, or more dropout"
    final, start = curve.looks[-1], curve.start_loss or curve.looks[0].loss
    before, after = _around(curve, best.step), _around(curve, final.step)
    rises = final.loss > 1.1 * best.loss + 0.02 * start
    if best.step < final.step and rises and after < before:
        rise = f"from {best.loss:.3f} at step {best.step} to {final.loss:.3f} at {final.step}"
        falls = f" while training loss went from {before:.3f} to {after:.3f}"
        return [Finding("overfit", f"validation loss rose {rise}{falls}", remedy)]
    if final.score is not None and not _good(curve) and after < GAP * final.loss:
        gap = f"training loss is {after:.3f} at step {final.step}, validation loss {final.loss:.3f}"
        return [Finding("overfit", f"{gap}, {final.score:.0%} right", remedy)]
    return []


def _limits(curve: Curve, first: float, last: float, reach: Reach | None) -> Iterator[Finding]:
    """A run that ends with mediocre answers: the adapter's rank or its layers bind it, or it has stopped for long."""
    if _good(curve):
        return
    scores = [look.score for look in curve.looks if look.score is not None]
    score = f" and {scores[-1]:.0%} right on validation rows" if scores else ""
    ends = f"training loss {last:.3f}{score} at step {curve.steps[-1].step}"
    since, swing = _flat_since(curve.looks), _swing(curve.looks) if scores else None
    stuck = since is not None and since.step <= FLAT_SHARE * curve.steps[-1].step
    told = f"{ends}, validation loss flat from step {since.step}" if since is not None and stuck else ends
    if swing:
        (low, high) = swing
        told += f", validation loss rose from {low.loss:.3f} at step {low.step} to {high.loss:.3f} at step {high.step}"
    blind = _is_blind(curve, last)
    told += f"; {_blindness(curve, last)}" if blind else ""
    done = (stuck and last > FLAT_GAIN * first) or (blind and not _still_falling([look.loss for look in curve.looks]))
    if scores and reach and reach.rank < LOW_RANK * reach.usual_rank:
        remedy = "double the rank, alpha with it"
        yield Finding("rank too low", f"{told}, at rank {reach.rank} where {reach.usual_rank} is usual", remedy)
    elif scores and reach and reach.adapted_share < NARROW:
        evidence = f"{told}, with adapters on {reach.adapted_share:.0%} of the linear weights at rank {reach.rank}"
        yield Finding("wrong layers", evidence, "adapt all linear layers")
    elif swing:
        yield Finding("plateau", told, "a lower rate, cleaner labels, or a larger rank")
    elif done:
        yield Finding("plateau", told, "fewer steps do as well; for more: a lower rate, cleaner labels, a larger rank")


def _swing(looks: Sequence[Look]) -> tuple[Look, Look] | None:
    """Two neighbours of which the later is the worse by a tenth; a rate that is a little too high does it."""
    return next(((a, b) for a, b in pairwise(looks) if b.loss > SWING * a.loss), None)


def _flat_since(looks: Sequence[Look]) -> Look | None:
    """The first look from which on the validation loss has hardly fallen, if two or more follow it."""
    for i, look in enumerate(looks[:-2]):
        if min(later.loss for later in looks[i + 1 :]) > (1 - FLAT_GAIN) * look.loss:
            return look
    return None


def _good(curve: Curve) -> bool:
    """Whether the last answers on validation rows are known to be right, nearly all."""
    return bool(curve.looks) and (curve.looks[-1].score or 0.0) >= GOOD_SCORE


def _lost_on_validation(curve: Curve) -> bool:
    """Whether the validation rows lost much of what they had gained."""
    return curve.best is not None and curve.looks[-1].loss > 1.25 * curve.best.loss


def _around(curve: Curve, step: int) -> float:
    """Median training loss of the tenth of the run that ends at a step."""
    span = max(3, len(curve.steps) // 10)
    until = [s.loss for s in curve.steps if s.step <= step]
    return _median(until[-span:] or [curve.steps[0].loss])


def _still_falling(looks: Sequence[float]) -> bool:
    """Whether the last look gained more than a twentieth of the loss, and every look before it gained too."""
    return len(looks) >= 3 and looks[-1] < 0.95 * looks[-2] and all(b < a for a, b in pairwise(looks))


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _rolling(values: Sequence[float], span: int) -> list[float]:
    return [_median(values[i : i + span]) for i in range(max(1, len(values) - span + 1))]
