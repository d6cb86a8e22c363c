from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from tasks.drift.pacing import Alarm, Begun, hold
from tasks.specs import RetrainSpec

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dataclass
class Loop:
    """A task that asks for a retrain again and again; `clock` may be wrong by some seconds, `true` never is."""

    spec: RetrainSpec
    skew: timedelta = timedelta(0)
    champion: int = 1
    alarm: Alarm = field(default_factory=lambda: Alarm(True, START - HOUR))
    begun: list[Begun] = field(default_factory=list)
    true: list[datetime] = field(default_factory=list)

    def ask(self, at: datetime) -> bool:
        now = at + self.skew
        name = f"triage:{self.champion}"
        if hold(self.begun, champion=name, alarm=self.alarm, now=now, retrain=self.spec):
            return False
        self.begun.append(Begun(now, name))
        self.true.append(at)
        return True


def gaps(moments: list[datetime]) -> list[timedelta]:
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


def test_two_retrains_are_never_nearer_than_the_cooldown_however_often_they_are_asked_for() -> None:
    loop = Loop(RetrainSpec(cooldown_hours=6, daily_budget=99))
    for minute in range(0, 5 * 24 * 60, 7):
        if loop.ask(START + timedelta(minutes=minute)):
            loop.champion += 1  # every one brings a new champion
    assert len(loop.true) == 20
    assert all(6 * HOUR <= gap < 6 * HOUR + timedelta(minutes=7) for gap in gaps(loop.true))


def test_the_daily_budget_holds_in_every_stretch_of_24_hours() -> None:
    loop = Loop(RetrainSpec(cooldown_hours=1, daily_budget=3))
    for minute in range(0, 6 * 24 * 60, 11):
        if loop.ask(START + timedelta(minutes=minute)):
            loop.champion += 1
    for begin in loop.true:
        assert sum(begin <= other < begin + 24 * HOUR for other in loop.true) <= 3
    assert len(loop.true) == 3 * 6


def test_retrains_in_vain_come_ever_more_rarely_but_never_end() -> None:
    loop = Loop(RetrainSpec(cooldown_hours=2, daily_budget=99))
    for hour in range(40 * 24):
        loop.ask(START + hour * HOUR)
    waits = [gap / HOUR for gap in gaps(loop.true)]
    assert waits[:5] == [4, 8, 16, 32, 64]
    assert set(waits[5:]) == {64}
    loop.champion += 1  # somebody promoted a better one: the plain cooldown counts again
    last = loop.true[-1]
    assert not loop.ask(last + 1.9 * HOUR)
    assert loop.ask(last + 2 * HOUR)


@pytest.mark.parametrize("jump", [-300, 300])
def test_a_clock_that_jumps_by_300_seconds_neither_skips_nor_doubles_a_cooldown(jump: int) -> None:
    chance = Random(jump)
    loop = Loop(RetrainSpec(cooldown_hours=6, daily_budget=99))
    for minute in range(0, 20 * 24 * 60, 3):
        loop.skew = timedelta(seconds=jump if chance.random() < 0.5 else 0)
        if loop.ask(START + timedelta(minutes=minute)):
            loop.champion += 1
    slack = timedelta(seconds=300)
    assert len(loop.true) > 70
    assert all(6 * HOUR - slack <= gap <= 6 * HOUR + slack + timedelta(minutes=3) for gap in gaps(loop.true))


def test_a_signal_that_flaps_is_one_alarm_until_it_was_calm_for_long_enough() -> None:
    alarm, episodes = Alarm(), []
    for number in range(40):
        alarm = alarm.after(START + number * HOUR, asks=number % 2 == 0, calm=number % 2 == 1, needed=2)
        episodes.append(alarm.since)
    assert set(episodes) == {START}
    for number in (40, 41):
        alarm = alarm.after(START + number * HOUR, asks=False, calm=True, needed=2)
    assert not alarm.raised
    alarm = alarm.after(START + 50 * HOUR, asks=True, calm=False, needed=2)
    assert (alarm.raised, alarm.since) == (True, START + 50 * HOUR)


def test_a_window_that_is_neither_calm_nor_an_alarm_ends_no_episode() -> None:
    alarm = Alarm().after(START, asks=True, calm=False, needed=2)
    for number in range(1, 9):
        alarm = alarm.after(START + number * HOUR, asks=False, calm=number % 2 == 1, needed=2)
    assert (alarm.raised, alarm.since) == (True, START)


def test_a_new_episode_begins_with_the_plain_cooldown() -> None:
    loop = Loop(RetrainSpec(cooldown_hours=2, daily_budget=99))
    for hour in range(10):
        loop.ask(START + hour * HOUR)
    assert not loop.ask(START + 10 * HOUR)
    loop.alarm = Alarm(True, START + 9.5 * HOUR)
    assert loop.ask(START + 10 * HOUR)
