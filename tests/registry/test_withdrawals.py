"""What is withdrawn is withdrawn with everything that contains it, and is used nowhere again."""

from __future__ import annotations

import random

import networkx
import pytest

from registry.errors import IntegrityError, Unknown
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.records import Parent
from registry.store import Store


@pytest.fixture
def family(workshop):
    """triage:1 -> triage:2 (retrained to replace it) -> triage:3 (trained on from 2); all:1 merges 1 and routing:1."""
    ledger = workshop.ledger
    ledger.register(workshop.draft("triage", 1))
    ledger.register(workshop.draft("routing", 1))
    for number, role in ((2, "previous"), (3, "start")):
        data = Parent("window", f"dataset:{workshop.dataset('window', number)}")
        parents = (data, Parent(role, f"triage:{number - 1}"))
        ledger.register(workshop.draft("triage", number, parents=parents))
    ledger.register(workshop.merged("all", ("triage:1", "routing:1")))
    return workshop


def test_what_contains_a_thing_is_what_was_made_from_it_not_what_was_compared_with_it(family):
    ledger = family.ledger
    assert ledger.containing("triage:1") == ("all:1",)
    assert ledger.containing("triage:2") == ("triage:3",)
    first = ledger.version("triage:1").parents[0].ref
    assert ledger.containing(first) == ("triage:1", "all:1")
    assert ledger.containing(ledger.version("triage:2").parents[0].ref) == ("triage:2", "triage:3")
    assert len(ledger.containing(f"base:{family.base}")) == 5


def test_withdrawing_marks_all_that_contain_it_once_with_the_reason(family):
    ledger = family.ledger
    marked = ledger.withdraw("routing:1", actor="ci", reason="leaked mail")
    assert [(r.version, r.cause, r.actor, r.reason) for r in marked] == [
        ("routing:1", "routing:1", "ci", "leaked mail"),
        ("all:1", "routing:1", "ci", "leaked mail"),
    ]
    assert ledger.withdrawals() == marked
    assert ledger.withdraw("routing:1", reason="again") == ()
    assert [r.version for r in ledger.withdraw("triage:1", reason="old")] == ["triage:1"]  # all:1 was marked before
    assert ledger.withdrawal("triage:2") is None
    assert (ledger.challenger("all"), ledger.challenger("triage").number) == (None, 3)
    assert ledger.withdrawal("all:1").reason == "leaked mail"
    told = [(e.name, e.number) for e in ledger.pending() if e.topic == "withdrawal"]
    assert told == [("routing", 1), ("all", 1), ("triage", 1)]
    assert fsck(ledger, family.store) == ()


def test_what_is_withdrawn_is_not_promoted_loaded_or_built_upon(family):
    ledger = family.ledger
    ledger.withdraw("triage:2", reason="wrong labels")
    for use in (
        lambda: ledger.promote("triage", 2, expected=None, decision={}),
        lambda: ledger.files("triage:3"),
        lambda: ledger.register(family.merged("both", ("triage:3", "routing:1"))),
    ):
        with pytest.raises(IntegrityError, match="was withdrawn"):
            use()
    fresh = Parent("window", f"dataset:{family.dataset('fresh')}")
    follower = family.draft("triage", "new", parents=(fresh, Parent("previous", "triage:2")))
    assert ledger.register(follower).ref == "triage:4"  # a replacement for it contains nothing of it
    assert ledger.files("triage:4").is_dir()


def test_a_rollback_steps_over_what_was_withdrawn(family):
    ledger = family.ledger
    for number, expected in ((1, None), (2, 1), (3, 2)):
        ledger.promote("triage", number, expected=expected, decision={})
    ledger.withdraw("triage:2", reason="wrong labels")
    assert ledger.champion("triage").number == 3  # serving is a decision of its own
    assert ledger.rollback("triage").number == 1
    with pytest.raises(Unknown, match="no earlier champion"):
        ledger.rollback("triage")
    assert fsck(ledger, family.store) == ()


def test_only_a_version_is_withdrawn(family):
    with pytest.raises(Unknown, match="not a version"):
        family.ledger.withdraw(f"base:{family.base}", reason="x")
    with pytest.raises(Unknown, match="nearest name is triage"):
        family.ledger.withdraw("triag:1", reason="x")


def test_a_descendant_that_is_not_marked_is_found_by_fsck(sqlite_workshop, raw):
    ledger = sqlite_workshop.ledger
    ledger.register(sqlite_workshop.draft("triage", 1))
    ledger.register(sqlite_workshop.merged("all", ("triage:1",)))
    ledger.withdraw("triage:1", reason="x")
    raw.execute("DROP TRIGGER withdrawals_refuses_delete")
    raw.execute("DELETE FROM withdrawals WHERE version_id = 2")
    assert {(p.code, p.where) for p in fsck(ledger, sqlite_workshop.store)} == {("E-LEDGER-112", "all:1")}


def test_descendants_agree_with_networkx_on_random_histories(sqlite_workshop):
    ledger, chance = sqlite_workshop.ledger, random.Random(5)
    graph, known = networkx.DiGraph(), []
    for place in range(25):
        parents = chance.sample(known, min(len(known), chance.randrange(3)))
        roles = [chance.choice(["start", "previous"]) for _ in parents]
        edges = (Parent("dataset", f"dataset:{sqlite_workshop.dataset('m')}"), *map(Parent, roles, parents))
        ref = ledger.register(sqlite_workshop.draft("m", place, parents=edges)).ref
        graph.add_node(ref)
        graph.add_edges_from((parent, ref) for role, parent in zip(roles, parents, strict=True) if role == "start")
        known.append(ref)
    for ref in known:
        assert set(ledger.containing(ref)) == networkx.descendants(graph, ref)


def test_a_child_that_is_registered_while_its_parent_is_withdrawn_is_marked_or_refused(url, family, together):
    """K02: on every database, whoever comes first; eight children against one withdrawal."""
    drafts = [family.merged(f"child-{place}", ("routing:1",), place) for place in range(8)]

    def work(place: int, ready) -> None:
        with Ledger.open(url, store=Store(family.store.root)) as ledger:
            ready()
            if place == 8:
                ledger.withdraw("routing:1", reason="race")
                return
            said = "was withdrawn"
            try:
                ledger.register(drafts[place])
            except IntegrityError as refusal:
                said = str(refusal)
            assert "was withdrawn" in said

    together(9, work)
    marked = {record.version for record in family.ledger.withdrawals()}
    assert marked == {"routing:1", *family.ledger.containing("routing:1")}
    assert fsck(family.ledger, family.store) == ()
