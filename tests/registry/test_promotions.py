"""One champion at a time, moved by compare-and-swap, on SQLite and on PostgreSQL."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time

import pytest

from registry.errors import Conflict, DependencyDown, IntegrityError, Unknown
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.store import Store

FORK = multiprocessing.get_context("fork")
PROMOTERS, TURNS = 8, int(os.environ.get("FACTORY_TURNS", "25"))  # `make races` takes 100


@pytest.fixture
def five(workshop):
    """A ledger with triage v1..v5 and no champion."""
    for place in range(5):
        workshop.ledger.register(workshop.draft("triage", place))
    return workshop.ledger


def assert_chain(links) -> None:
    """Gap-free, each link from where the one before ended: checked without the database's help."""
    assert [link.seq for link in links] == list(range(1, len(links) + 1))
    assert [link.previous for link in links] == [None, *(link.number for link in links)][: len(links)]


def test_a_promotion_is_remembered_with_its_decision(five):
    link = five.promote(
        "triage", 2, expected=None, decision={"gain": 0.25, "gates": ["a"]}, actor="ci", reason="better"
    )
    assert (link.seq, link.previous, link.number, link.move) == (1, None, 2, "promote")
    assert five.history("triage") == (link,)
    assert five.champion("triage").number == 2
    assert link.decision == {"gain": 0.25, "gates": ["a"]}


def test_who_expected_another_champion_is_told_which_one_stands(five):
    five.promote("triage", 1, expected=None, decision={})
    five.promote("triage", 3, expected=1, decision={})
    with pytest.raises(Conflict) as refusal:
        five.promote("triage", 4, expected=1, decision={})
    assert "champion is v3 now (you expected v1)" in str(refusal.value)
    assert refusal.value.champion == 3
    assert refusal.value.exit_code == 6
    with pytest.raises(Conflict, match="champion is v3 now"):
        five.promote("triage", 4, expected=None, decision={})
    assert [link.number for link in five.history("triage")] == [1, 3]


def test_who_expected_a_champion_where_there_is_none_is_told_so(five):
    with pytest.raises(Conflict, match="there is no champion"):
        five.promote("triage", 1, expected=2, decision={})


def test_a_champion_is_not_promoted_over_itself(five):
    five.promote("triage", 1, expected=None, decision={})
    with pytest.raises(Conflict, match="champion already"):
        five.promote("triage", 1, expected=1, decision={})


def test_only_a_known_version_can_be_promoted(five):
    for name, number in (("triage", 6), ("unknown", 1)):
        with pytest.raises(Unknown):
            five.promote(name, number, expected=None, decision={})
    assert five.history("triage") == ()


def test_only_a_version_whose_files_verify_can_be_promoted_or_rolled_back_to(five, store):
    five.promote("triage", 1, expected=None, decision={})
    five.promote("triage", 2, expected=1, decision={})
    for number in (1, 3):
        shutil.rmtree(store.path(five.version(f"triage:{number}").artifact).parent)
    with pytest.raises(IntegrityError):
        five.promote("triage", 3, expected=2, decision={})
    with pytest.raises(IntegrityError):
        five.rollback("triage")
    assert five.champion("triage").number == 2


def test_rollbacks_undo_promotions_one_by_one_and_never_swing_back(five):
    for number, expected in ((1, None), (2, 1), (3, 2)):
        five.promote("triage", number, expected=expected, decision={})
    assert [five.rollback("triage", reason="worse").number for _ in range(2)] == [2, 1]
    with pytest.raises(Unknown, match="no earlier champion"):
        five.rollback("triage")
    five.promote("triage", 4, expected=1, decision={})
    assert five.rollback("triage").number == 1
    assert [link.move for link in five.history("triage")] == ["promote"] * 3 + ["rollback"] * 2 + [
        "promote",
        "rollback",
    ]
    assert_chain(five.history("triage"))


def test_a_rollback_of_what_is_not_champion_any_more_is_refused(five):
    for number, expected in ((1, None), (2, 1), (3, 2)):
        five.promote("triage", number, expected=expected, decision={})
    with pytest.raises(Conflict, match="champion is v3 now"):
        five.rollback("triage", expected=2)
    assert five.rollback("triage", expected=3).number == 2


def test_names_without_a_champion_have_nothing_to_roll_back(five):
    with pytest.raises(Unknown):
        five.rollback("triage")
    with pytest.raises(Unknown):
        five.rollback("unknown")


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_moves_agrees_with_a_stack(seed, sqlite_workshop):
    """0 rolls back, 1..3 promote, drawn by chance: a list is the witness."""
    ledger, chance = sqlite_workshop.ledger, random.Random(seed)
    for place in range(3):
        ledger.register(sqlite_workshop.draft("triage", place))
    stack: list[int] = []
    for _ in range(25):
        move, champion = chance.randrange(4), stack[-1] if stack else None
        if move == 0 and len(stack) > 1:
            stack.pop()
            assert ledger.rollback("triage").number == stack[-1]
        elif move == 0:
            with pytest.raises(Unknown):
                ledger.rollback("triage")
        elif move == champion:
            with pytest.raises(Conflict):
                ledger.promote("triage", move, expected=champion, decision={})
        else:
            stack.append(move)
            ledger.promote("triage", move, expected=champion, decision={})
        standing = ledger.champion("triage")
        assert (standing.number if standing else None) == (stack[-1] if stack else None)
    assert_chain(ledger.history("triage"))


def test_eight_promoters_lose_no_update_and_every_loser_is_told(url, five, store, together):
    """K01: each promoter reads the champion, then promotes another version; a slow step widens the race."""

    def promoted(place: int, ready) -> tuple[list[tuple[int, ...]], int]:
        os.environ["FACTORY_FAILPOINT"] = f"promote.before_link=sleep:0.001@{place + 1}"
        with Ledger.open(url, store=Store(store.root)) as ledger:
            won, lost = [], 0
            ready()
            for turn in range(TURNS):
                champion = ledger.champion("triage")
                expected = None if champion is None else champion.number
                number = 1 + (place + turn) % 5
                number = number if number != expected else 1 + number % 5
                try:
                    link = ledger.promote("triage", number, expected=expected, decision={"by": place, "turn": turn})
                    won.append((link.seq, link.previous, link.number, place, turn))
                except Conflict:
                    lost += 1
            return won, lost

    answers = together(PROMOTERS, promoted)
    won = sorted(win for wins, _ in answers for win in wins)
    links = five.history("triage")
    assert_chain(links)
    kept = [(link.seq, link.previous, link.number, link.decision["by"], link.decision["turn"]) for link in links]
    assert kept == won  # what a promoter was told it won is in the chain, and nothing else
    assert len(won) + sum(lost for _, lost in answers) == PROMOTERS * TURNS
    assert five.champion("triage").number == won[-1][2]


@pytest.mark.postgres
def test_a_database_that_crashes_in_the_middle_of_a_promotion_loses_nothing(crashing_postgres, make_workshop, store):
    """C18: whoever was at it is told that a retry is safe (exit 7), and it is."""
    url, crash_and_restart = crashing_postgres
    workshop = make_workshop(url, store)
    for place in range(2):
        workshop.ledger.register(workshop.draft("triage", place))
    workshop.ledger.promote("triage", 1, expected=None, decision={})

    def work() -> None:
        os.environ["FACTORY_FAILPOINT"] = "promote.before_commit=sleep:2"
        with Ledger.open(url, store=Store(store.root)) as ledger:
            reached.set()
            try:
                ledger.promote("triage", 2, expected=1, decision={})
            except DependencyDown as down:
                os._exit(down.exit_code)

    reached = FORK.Event()
    child = FORK.Process(target=work)
    child.start()
    assert reached.wait(30)
    time.sleep(0.5)
    crash_and_restart()
    child.join(60)
    assert child.exitcode == 7
    assert [link.number for link in workshop.ledger.history("triage")] == [1]
    assert workshop.ledger.promote("triage", 2, expected=1, decision={}).seq == 2
    assert_chain(workshop.ledger.history("triage"))
    assert fsck(workshop.ledger, store) == ()
