"""Several runs on one base at the same pace, their rows in one pass over it, where that is faster.

Each run is the loop that it would be alone: its own order of rows, optimiser, schedule, curve, checkpoints and end.
They differ in who computes their gradients. The first steps are computed twice, each run's own way, which counts, and
together, which is held against it and timed. Where together is not faster, or not the same, all stop with a
checkpoint, from which each goes on by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tasks.training.base import Base
from tasks.training.folder import first_line
from tasks.training.loop import Trained
from tasks.training.part import Halted, Part, Run, backward
from tasks.training.peak import handing_back
from tasks.training.several import Several, twin_of
from tasks.training.state import trained_tensors

TRIED_STEPS = 5  # of which the first, slower whatever it is, does not count
WORTH = 1.1  # times as fast; less is within what timing so few steps can tell
ENOUGH_STEPS = 20 * TRIED_STEPS  # so that a trial in vain costs a twentieth of a run at most
CLOSE = {torch.bfloat16: 0.1}  # of the gradient's norm; float32 is held to 1e-3

Gradients = Mapping[str, Tensor | None]
Begin = Callable[[Base, Callable[[], bool]], Run[Trained]]


@dataclass
class Together:
    """What became of the runs, in their order: a Trained, or the error that ended it; and how they were computed."""

    outcomes: list[Trained | Exception]
    shared: bool
    reason: str


def train_together(
    base: Base,
    runs: Sequence[Begin],
    *,
    stop: Callable[[], bool] = lambda: False,
    share: bool | None = None,
    clock: Callable[[], float] = time.process_time,
) -> Together:
    """Train adapters of one base at the same pace; an error of one ends that one alone.

    Args:
        runs: each begins a run, given a base of its own and what to ask whether to stop; see `loop.steps_of`.
        stop: asked once before each pass; True ends every run with a checkpoint.
        share: whether their rows share passes; by default as was measured, now or before a stop.
        clock: seconds of this process, by default of its processors: what else the machine does is not measured.
    """
    pace = _Pace(base, clock, share)
    with torch.random.fork_rng(devices=[]):
        for begin in runs:
            pace.members.append(_Member.begun(begin(twin_of(base), lambda: pace.over)))
        try:
            with handing_back(base.device, len(runs)):
                while at_work := [member for member in pace.members if member.part]:
                    pace.over = pace.settle(at_work) or stop()
                    pace.step(at_work)
        finally:
            for member in pace.members:
                member.run.close()
    return Together([member.outcome for member in pace.members], bool(pace.share), pace.reason)  # type: ignore[misc]


@dataclass
class _Member:
    """A run between two parts. `chance` is the state of its own random numbers."""

    run: Run[Trained]
    chance: Tensor
    part: Part | None = None
    outcome: Trained | Exception | None = None

    @classmethod
    def begun(cls, run: Run[Trained]) -> _Member:
        member = cls(run, torch.get_rng_state())
        member.go_on(lambda: next(run))
        return member

    def go_on(self, resume: Callable[[], Part]) -> None:
        """To the next part, or the end."""
        torch.set_rng_state(self.chance)
        try:
            self.part = resume()
        except StopIteration as end:
            self.part, self.outcome = None, end.value
        except Exception as error:
            self.part, self.outcome = None, error
        self.chance = torch.get_rng_state()

    def take(self, found: float | Exception) -> None:
        """The loss of the part that it waits for, or what went wrong with it."""
        if isinstance(found, Exception):
            self.go_on(lambda: self.run.throw(found))
        else:
            self.go_on(lambda: self.run.send(found))

    def compute(self) -> float | Exception:
        """Its part, in its own way."""
        assert self.part
        torch.set_rng_state(self.chance)
        try:
            return backward(self.part)
        except Exception as error:
            return error
        finally:
            self.chance = torch.get_rng_state()

    def gradients(self) -> Gradients:
        assert self.part
        return {name: parameter.grad for name, parameter in trained_tensors(self.part.model)}

    def set_gradients(self, gradients: Gradients) -> None:
        assert self.part
        for name, parameter in trained_tensors(self.part.model):
            parameter.grad = gradients.get(name)


@dataclass
class _Pace:
    """How the parts of all are computed, and why."""

    base: Base
    clock: Callable[[], float]
    share: bool | None
    reason: str = ""
    over: bool = False
    members: list[_Member] = field(default_factory=list)
    _several: Several | None = None
    _seconds: list[tuple[float, float]] = field(default_factory=list)  # (each by itself, together) of a step

    def settle(self, at_work: Sequence[_Member]) -> bool:
        """Choose once enough is known and write it into the runs; True where they are to part."""
        if self.share is None:
            self.share, self.reason = self._choice(at_work)
        if self.share is None:
            return False
        for member in at_work:
            assert member.part
            member.part.state.together, member.part.state.together_reason = self.share, self.reason
        return not self.share

    def _choice(self, at_work: Sequence[_Member]) -> tuple[bool | None, str]:
        parts = [member.part for member in at_work if member.part]
        known = {(part.state.together, part.state.together_reason) for part in parts}
        if len(known) == 1 and parts[0].state.together is not None:  # measured before a stop
            return known.pop()
        if self.reason:
            return False, f"trained by itself: {self.reason}"
        if len(parts) < 2:
            return False, "trained by itself: no other was left"
        if not self._seconds and min(part.steps_left for part in parts) < ENOUGH_STEPS:
            return False, f"trained by itself: fewer than {ENOUGH_STEPS} steps are left, too few to try"
        if len(self._seconds) < TRIED_STEPS:
            return None, ""
        apart, joint = map(sum, zip(*self._seconds[1:], strict=True))
        gain = apart / joint
        took = f"a step for {len(parts)} adapters at once was {gain:.2f} times as fast as one for each"
        return (True, f"trained together: {took}") if gain >= WORTH else (False, f"trained by itself: {took}")

    def step(self, at_work: Sequence[_Member]) -> None:
        """The next part of each; a run that is to stop gives up the step that it is in."""
        if self.over:
            found: Sequence[float | Exception] = [Halted()] * len(at_work)
        elif self.share and len(at_work) > 1:
            found = self._computed_together(at_work)
        elif self.share is None and len(at_work) > 1:
            found = self._tried(at_work)
        else:
            found = [member.compute() for member in at_work]
        for member, one in zip(at_work, found, strict=True):
            member.take(one)

    def _computed_together(self, at_work: Sequence[_Member]) -> Sequence[float | Exception]:
        """One pass for all; where it fails, as for lack of memory, they part and no step is half done."""
        try:
            return self._pass(at_work)
        except Exception as error:
            self.share, self.over, self.reason = (
                False,
                True,
                f"trained by itself: together it failed, {first_line(error)}",
            )
            self.settle(at_work)
            return [Halted()] * len(at_work)

    def _pass(self, at_work: Sequence[_Member]) -> list[float]:
        parts = [member.part for member in at_work if member.part]
        if self._several is None:
            self._several = Several(self.base, parts)
        chances = [torch.Generator().set_state(member.chance) for member in at_work]
        losses = self._several.backward(parts, chances)
        for member, chance in zip(at_work, chances, strict=True):
            member.chance = chance.get_state()
        return losses

    def _tried(self, at_work: Sequence[_Member]) -> Sequence[float | Exception]:
        """Each part in its own way, which counts; the same together, held against it and timed."""
        before = [(member.chance, member.gradients()) for member in at_work]
        for member in at_work:
            member.set_gradients({})
        began = self.clock()
        found = [member.compute() for member in at_work]
        seconds = self.clock() - began
        own = [(member.chance, member.gradients()) for member in at_work]
        if not any(isinstance(one, Exception) for one in found):
            for member, (chance, _) in zip(at_work, before, strict=True):
                member.chance = chance
                member.set_gradients({})
            try:
                began = self.clock()
                self._pass(at_work)
                self._seconds.append((seconds, self.clock() - began))
                self.reason = self._difference(at_work, [gradients for _, gradients in own])
            except Exception as error:
                self.reason = first_line(error)
        for member, (chance, gradients), (_, earlier) in zip(at_work, own, before, strict=True):
            member.chance = chance
            member.set_gradients({name: _sum(earlier[name], gradient) for name, gradient in gradients.items()})
        return found

    def _difference(self, at_work: Sequence[_Member], own: Sequence[Gradients]) -> str:
        """What is not as in a run of its own, in words."""
        for member, gradients in zip(at_work, own, strict=True):
            own_gradient = _flat(gradients)
            size = float(own_gradient.norm())
            apart = float((_flat(member.gradients()) - own_gradient).norm()) / max(size, 1e-12)
            if math.isfinite(size) and not apart <= CLOSE.get(self.base.compute_dtype, 1e-3):
                return f"together its gradient is {apart:.2g} of its norm away"
        return ""


def _flat(gradients: Gradients) -> Tensor:
    return torch.cat([gradient.flatten().float() for gradient in gradients.values() if gradient is not None])


def _sum(earlier: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if earlier is None or new is None else earlier.add_(new)
