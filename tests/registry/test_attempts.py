"""A thing is made once, whoever wants it and however often a maker dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import holder, keep
from flows.keep import sole, turn_to_make
from registry.errors import Conflict
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.store import Store

FORK = multiprocessing.get_context("fork")
WANTED = 8


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.keep.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("flows.progress.voice.quiet", True)


def home_of(url: str, root: Path) -> SimpleNamespace:
    return SimpleNamespace(ledger=Ledger.open(url, store=Store(root)))


def test_of_eight_processes_that_want_one_version_one_makes_it_and_all_get_it(url, workshop, tmp_path, together):
    """K03: the others wait, and get the version that the one made."""
    draft = workshop.draft("triage")
    made = tmp_path / "made"

    def returned(_, ready) -> str:
        home = home_of(url, workshop.store.root)
        ready()
        with turn_to_make(home, draft.version_key) as lease:
            if lease is not None:
                with open(made, "ab") as file:
                    file.write(b"x")
                home.ledger.register(draft, lease=lease)
        return home.ledger.by_key(draft.version_key).ref

    assert together(WANTED, returned) == ["triage:1"] * WANTED
    assert made.read_bytes() == b"x"
    assert [(a.number, a.state, a.outcome) for a in workshop.ledger.attempts(draft.version_key)] == [
        (1, "done", "triage:1")
    ]
    assert fsck(workshop.ledger, workshop.store) == ()


def test_of_eight_specs_of_one_task_all_register_and_each_is_judged_against_the_champion_that_stands(
    url, workshop, together
):
    """K04: the gate lets one in at a time, so none of them meets a champion that it was not held against."""
    drafts = [workshop.draft("triage", place) for place in range(WANTED)]

    def work(place: int, ready) -> None:
        home = home_of(url, workshop.store.root)
        ready()
        number = home.ledger.register(drafts[place]).number
        with sole(home, "promote:triage", why="a candidate is being judged") as lease:
            champion = home.ledger.champion("triage")
            keep.time.sleep(0.01)  # as long as judging takes
            expected = champion.number if champion else None
            home.ledger.promote("triage", number, expected=expected, decision={}, lease=lease)

    together(WANTED, work)
    assert {workshop.ledger.by_key(draft.version_key).artifact for draft in drafts} == {d.artifact for d in drafts}
    links = workshop.ledger.history("triage")
    assert sorted(link.number for link in links) == list(range(1, WANTED + 1))
    assert [link.previous for link in links] == [None, *(link.number for link in links[:-1])]
    assert fsck(workshop.ledger, workshop.store) == ()


@pytest.mark.parametrize("seen", [True, False])
def test_a_maker_that_was_killed_is_followed_at_once_here_and_elsewhere_when_its_lease_has_run_out(
    seen, url, workshop, monkeypatch
):
    monkeypatch.setattr(keep, "LEASE_SECONDS", 3600 if seen else 0.4)
    draft = workshop.draft("triage")

    def die() -> None:
        with turn_to_make(home_of(url, workshop.store.root), draft.version_key):
            os.kill(os.getpid(), signal.SIGKILL)

    child = FORK.Process(target=die)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    home = home_of(url, workshop.store.root)
    if not seen:
        monkeypatch.setattr(holder, "_room", lambda: "another machine")
    with turn_to_make(home, draft.version_key) as lease:
        home.ledger.register(draft, lease=lease)
    assert [a.state for a in home.ledger.attempts(draft.version_key)] == ["lost", "done"]


def test_only_a_process_that_can_be_seen_to_have_ended_is_gone():
    def tell(pipe) -> None:
        pipe.send(holder.myself())
        pipe.recv()

    ours, theirs = FORK.Pipe()
    child = FORK.Process(target=tell, args=(theirs,))
    child.start()
    name = ours.recv()
    assert not holder.is_gone(name)
    host, pid, room, born, one = name.rsplit(":", 4)
    assert holder.is_gone(f"{host}:{pid}:{room}:{int(born) - 1}:{one}"), "its pid was given to another since"
    ours.send("end")
    child.join()
    assert holder.is_gone(name)
    assert not holder.is_gone(f"{host}:{pid}:another-{room}:{born}:{one}")
    for word in ("somebody", "", "a:b:c:d:e", "queue 7 2026-01-01T00:00:00"):
        assert not holder.is_gone(word)
    assert not holder.is_gone(holder.myself())
    assert holder.myself() != holder.myself()


def test_a_process_that_only_its_owner_may_see_is_not_gone(monkeypatch):
    """What /proc mounted with hidepid and another user's process look like from here."""
    host, _, room, born, one = holder.myself().rsplit(":", 4)
    name = f"{host}:{2**22 + 1}:{room}:{born}:{one}"  # above the largest pid there is
    assert holder.is_gone(name)

    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(holder.os, "kill", forbidden)
    assert not holder.is_gone(name)


def test_a_maker_that_lives_keeps_its_turn_longer_than_its_lease(sqlite_url, sqlite_workshop, monkeypatch):
    monkeypatch.setattr(keep, "LEASE_SECONDS", 0.3)
    home, key = home_of(sqlite_url, sqlite_workshop.store.root), "a" * 64
    with turn_to_make(home, key) as lease:
        keep.time.sleep(0.8)
        assert home.ledger.take_lease("make:" + key, holder="another", seconds=1) is None
        assert home.ledger.renew_lease(lease, seconds=1).token == lease.token


def test_a_maker_that_lost_its_turn_registers_and_promotes_nothing(url, workshop):
    """K05: two workers at one run; the stale one's commit is refused by the token."""
    ledger, draft = workshop.ledger, workshop.draft("triage")
    stale = ledger.take_lease("make:" + draft.version_key, holder="one", seconds=0.0)
    fresh = ledger.take_lease("make:" + draft.version_key, holder="two", seconds=60)
    for late in (
        lambda: ledger.register(draft, lease=stale),
        lambda: ledger.begin_attempt(draft.version_key, stale),
    ):
        with pytest.raises(Conflict, match="the lease is lost: two took it"):
            late()
    assert ledger.by_key(draft.version_key) is None
    assert ledger.register(draft, lease=fresh).ref == "triage:1"
    with pytest.raises(Conflict, match="the lease is lost"):
        ledger.promote("triage", 1, expected=None, decision={}, lease=stale)
    assert ledger.champion("triage") is None
    assert ledger.promote("triage", 1, expected=None, decision={}, lease=fresh).number == 1


@pytest.mark.parametrize("error", [ValueError("bad rows\nmore"), KeyboardInterrupt()])
def test_how_a_making_ended_is_remembered_and_the_error_passes_through(sqlite_url, sqlite_workshop, error):
    home = home_of(sqlite_url, sqlite_workshop.store.root)
    with pytest.raises(type(error)), turn_to_make(home, "a" * 64):
        raise error
    (attempt,) = home.ledger.attempts("a" * 64)
    assert attempt.state == "failed"
    assert attempt.outcome == f"{type(error).__name__}: {'bad rows' if str(error) else ''}"
    assert attempt.ended_at is not None
    assert home.ledger.take_lease("make:" + "a" * 64, holder="next", seconds=1) is not None
