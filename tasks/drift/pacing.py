"""How often a task may be taught again: a cooldown that grows with attempts in vain, and a daily budget.

A signal that flaps (alarm, quiet, alarm) is one episode until enough quiet windows have come in a row. Within an
episode every retrain that brought no new champion doubles the wait for the next one, so a task that cannot be mended
by its traffic costs ever less, and is never given up.

All moments come from one clock. Where that clock jumps by some seconds, a wait is shorter or longer by these, no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tasks.specs import RetrainSpec

DAY = timedelta(days=1)
LONGEST_DOUBLING = 5


@dataclass(frozen=True)
class Begun:
    """A retrain that was begun: when, and on account of which version of the task."""

    at: datetime
    version: str


@dataclass(frozen=True)
class Hold:
    """Why a retrain has to wait, and until when."""

    because: str
    until: datetime


@dataclass(frozen=True)
class Alarm:
    """Whether a task's traffic asks for a retrain: raised by one window, cleared by several calm ones in a row.

    `since` is the moment of the first window of the present episode, or of the first after the last one ended.

    >>> from datetime import UTC
    >>> day = [datetime(2026, 1, n, tzinfo=UTC) for n in range(1, 6)]
    >>> alarm = Alarm()
    >>> for at, asks, calm in zip(day, (True, False, True, False, False), (False, True, False, True, True)):
    ...     alarm = alarm.after(at, asks=asks, calm=calm, needed=2)
    >>> alarm.raised, alarm.since.day
    (False, 5)
    """

    raised: bool = False
    since: datetime | None = None
    calm_windows: int = 0

    def after(self, at: datetime, *, asks: bool, calm: bool, needed: int) -> Alarm:
        """The alarm after one more window; `calm` says that nothing at all had moved, `needed` clear the alarm."""
        if asks:
            return Alarm(True, self.since if self.raised else at)
        if not self.raised:
            return Alarm(False, self.since)
        calm_windows = self.calm_windows + 1 if calm else 0
        return Alarm(False, at) if calm_windows >= needed else Alarm(True, self.since, calm_windows)


def in_vain(begun: Sequence[Begun], *, champion: str, alarm: Alarm) -> int:
    """Retrains that were begun against the present champion in the present episode: with success there would be another
    champion."""
    return sum(one.version == champion and (alarm.since is None or one.at >= alarm.since) for one in begun)


def hold(begun: Sequence[Begun], *, champion: str, alarm: Alarm, now: datetime, retrain: RetrainSpec) -> Hold | None:
    """Why the next retrain has to wait; None if it may begin now.

    The cooldown counts from the last retrain that was begun, whatever came of it, and doubles with each one in vain.

    >>> from datetime import UTC
    >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> once, spec = [Begun(noon, "triage:1")], RetrainSpec(cooldown_hours=6, daily_budget=9)
    >>> hold(once, champion="triage:2", alarm=Alarm(), now=noon + timedelta(hours=5), retrain=spec).until.hour
    18
    >>> hold(once, champion="triage:1", alarm=Alarm(), now=noon + timedelta(hours=7), retrain=spec).because
    'the cooldown of 12 h is not over (1 retrain of triage:1 was in vain)'
    """
    if not begun:
        return None
    last = max(one.at for one in begun)
    vain = in_vain(begun, champion=champion, alarm=alarm)
    cooldown = timedelta(hours=retrain.cooldown_hours) * 2 ** min(vain, LONGEST_DOUBLING)
    if now < last + cooldown:
        note = f" ({vain} retrain{'s' * (vain > 1)} of {champion} {'were' if vain > 1 else 'was'} in vain)"
        hours = f"{cooldown / timedelta(hours=1):g} h"
        return Hold(f"the cooldown of {hours} is not over{note * (vain > 0)}", last + cooldown)
    recent = sorted(one.at for one in begun if one.at > now - DAY)
    if len(recent) >= retrain.daily_budget:
        spent = f"{len(recent)} retrain{'s' * (len(recent) > 1)} in 24 h, {retrain.daily_budget} allowed"
        return Hold(spent, recent[-retrain.daily_budget] + DAY)
    return None
