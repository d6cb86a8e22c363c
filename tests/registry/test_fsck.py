"""Each invariant, broken on purpose behind the ledger's back, is found and named."""

from __future__ import annotations

import shutil
import zlib

import pytest

from registry.fsck import fsck
from registry.records import Parent


@pytest.fixture
def sound(workshop):
    """A ledger with something of everything."""
    ledger = workshop.ledger
    figures = workshop.store.put_files({"loss.svg": b"<svg/>"})
    data = workshop.dataset("triage")
    for place in range(3):
        draft = workshop.draft("triage", place, figures=figures, evaluations=(workshop.evaluation(data),))
        ledger.register(draft)
    ledger.register(workshop.merged("all", ("triage:1", "triage:3")))
    for number, expected in ((1, None), (2, 1), (3, 2)):
        ledger.promote("triage", number, expected=expected, decision={})
    ledger.rollback("triage")
    return workshop


@pytest.fixture
def broken(sqlite_workshop, raw, monkeypatch):
    """(workshop, raw connection without triggers, foreign keys and checks) on SQLite."""
    ledger = sqlite_workshop.ledger
    data = sqlite_workshop.dataset("triage")
    for place in range(3):
        ledger.register(sqlite_workshop.draft("triage", place, evaluations=(sqlite_workshop.evaluation(data),)))
    ledger.register(sqlite_workshop.merged("all", ("triage:1", "triage:2")))
    for number, expected in ((1, None), (2, 1), (3, 2)):
        ledger.promote("triage", number, expected=expected, decision={})
    raw.execute("PRAGMA ignore_check_constraints = ON")
    for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        raw.execute(f"DROP TRIGGER {name}")
    return sqlite_workshop, raw


def test_a_sound_ledger_has_no_findings(sound):
    assert fsck(sound.ledger, sound.store) == ()


def test_an_empty_ledger_has_no_findings(ledger, store):
    assert fsck(ledger, store) == ()


@pytest.mark.parametrize(
    ("harm", "code", "named"),
    [
        ("DELETE FROM promotions WHERE seq = 2", "E-LEDGER-104", "triage promotion 3"),
        ("UPDATE promotions SET previous = 1 WHERE seq = 3", "E-LEDGER-104", "triage promotion 3"),
        (
            """UPDATE promotions SET decision = '{"gates":[{"name":"gain","passed":false}]}' WHERE seq = 3""",
            "E-LEDGER-114",
            "triage promotion 3",
        ),
        ("UPDATE promotions SET number = 9 WHERE seq = 3", "E-LEDGER-105", "triage promotion 3"),
        ("DELETE FROM versions WHERE number = 3", "E-LEDGER-103", "triage"),
        ("UPDATE names SET last_number = 7 WHERE name = 'triage'", "E-LEDGER-103", "triage"),
        ("UPDATE edges SET parent_id = 4 WHERE child_id = 4 AND parent_id IS NOT NULL", "E-LEDGER-106", "all:1"),
        ("DELETE FROM edges WHERE role = 'dataset'", "E-LEDGER-107", "all:1"),
        ("DELETE FROM edges WHERE role = 'base' AND child_id = 2", "E-LEDGER-107", "triage:2"),
        ("DELETE FROM edges WHERE role = 'code' AND child_id = 1", "E-LEDGER-107", "triage:1"),
        ("DELETE FROM datasets", "E-LEDGER-102", "edges row"),
        ("UPDATE datasets SET quarantined = 4", "E-LEDGER-108", "dataset:"),
        ("UPDATE row_sets SET n = 9", "E-LEDGER-109", "row set"),
        ("UPDATE evaluations SET n = 9", "E-LEDGER-110", "triage:1"),
        ("UPDATE versions SET artifact = '" + "0" * 64 + "' WHERE id = 1", "E-STORE-001", "triage:1"),
    ],
)
def test_each_broken_invariant_is_named(broken, harm, code, named):
    workshop, raw = broken
    assert raw.execute(harm).rowcount > 0
    found = fsck(workshop.ledger, workshop.store)
    assert (code, True) in {(problem.code, problem.where.startswith(named)) for problem in found}


def test_swapped_keys_of_a_row_set_are_found(broken):
    workshop, raw = broken
    raw.execute("UPDATE row_sets SET keys = ?", [zlib.compress(b'["a","b","c","d","e","f","g","h","i","j"]')])
    assert "E-LEDGER-109" in {problem.code for problem in fsck(workshop.ledger, workshop.store)}


@pytest.mark.parametrize("what", ["artifact", "figures", "dataset"])
def test_every_damaged_file_is_found_with_its_owner(sound, what):
    version = sound.ledger.version("triage:2")
    digest = version.parents[0].ref.removeprefix("dataset:") if what == "dataset" else getattr(version, what)
    shutil.rmtree(sound.store.path(digest))
    found = fsck(sound.ledger, sound.store)
    assert {problem.code for problem in found} == {"E-STORE-004"}
    assert all(problem.where.startswith(("triage:2", "triage:3 figures", "dataset:")) for problem in found)


def test_a_version_of_merged_parents_is_closed_through_them(workshop):
    workshop.ledger.register(workshop.draft("triage"))
    draft = workshop.draft("all", kind="merged", parents=(Parent("parent", "triage:1"),))
    workshop.ledger.register(draft)
    assert fsck(workshop.ledger, workshop.store) == ()
