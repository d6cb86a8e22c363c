"""A sweep takes what nothing refers to and is older than a day, and never anything else; a repair needs no guess."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from registry.copies import in_mlflow
from registry.errors import IntegrityError
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.mirror import mirror
from registry.repair import repair
from registry.store import Store
from registry.sweep import DAY_SECONDS, rubbish, sweep
from registry.tracking import Tracker


@pytest.fixture
def kept(workshop):
    """A ledger that refers to artifacts, figures, manifests and data sets."""
    figures = workshop.store.put_files({"loss.svg": b"<svg/>"})
    for place in range(2):
        workshop.ledger.register(workshop.draft("triage", place, figures=figures))
    return workshop


def now() -> float:
    return time.time()


def test_nothing_that_is_referred_to_is_ever_taken(kept):
    before = list(kept.store.digests())
    assert sweep(kept.ledger, kept.store, now_seconds=now() + 1000 * DAY_SECONDS) == ()
    assert list(kept.store.digests()) == before
    assert fsck(kept.ledger, kept.store) == ()


def test_an_orphan_is_named_after_a_day_and_taken_only_when_asked(kept, tmp_path):
    """C06: what a run published and did not come to register."""
    orphan = kept.store.put_files({"weights": b"x" * 1000})
    (tmp_path / "scratch" / "run").mkdir(parents=True)
    (tmp_path / "scratch" / "run" / "half.safetensors").write_bytes(b"x" * 10)
    (kept.store.root / "tmp" / "staging-of-a-killed-writer").mkdir()
    places = {"workshops": [tmp_path / "scratch"]}
    assert rubbish(kept.ledger, kept.store, now_seconds=now() + DAY_SECONDS - 60, **places) == ()
    later = now() + DAY_SECONDS + 60
    named = rubbish(kept.ledger, kept.store, now_seconds=later, **places)
    assert [(item.kind, os.path.basename(item.name)) for item in named] == [
        ("object", orphan),
        ("litter", "staging-of-a-killed-writer"),
        ("litter", "run"),
    ]
    assert named[0].bytes > 1000
    assert kept.store.holds(orphan)
    assert {item.name for item in sweep(kept.ledger, kept.store, now_seconds=later, **places)} == {
        item.name for item in named
    }
    assert not kept.store.holds(orphan)
    assert list((tmp_path / "scratch").iterdir()) == list((kept.store.root / "tmp").iterdir()) == []
    assert fsck(kept.ledger, kept.store) == ()


def test_what_is_stored_again_is_young_again(kept, tmp_path):
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x")
    digest = kept.store.put(folder)
    place = kept.store.path(digest).parent
    old = now() - 2 * DAY_SECONDS
    os.utime(place, (old, old))
    assert [item.name for item in rubbish(kept.ledger, kept.store, now_seconds=now())] == [digest]
    kept.store.put(folder)
    assert sweep(kept.ledger, kept.store, now_seconds=now()) == ()


def test_a_registration_beside_a_sweep_keeps_its_files_or_is_refused(url, kept, together):
    """K02: old orphans are registered by eight processes while others sweep; no row is left without its files."""
    drafts = [kept.draft("late", place) for place in range(8)]
    old = now() - 2 * DAY_SECONDS
    for draft in drafts:
        os.utime(kept.store.path(draft.artifact).parent, (old, old))

    def work(place: int, ready) -> None:
        with Ledger.open(url, store=Store(kept.store.root)) as ledger:
            ready()
            if place >= 8:
                sweep(ledger, Store(kept.store.root), now_seconds=now())
                return
            said = "is not in the store"
            try:
                ledger.register(drafts[place])
            except IntegrityError as refusal:
                said = str(refusal)
            assert "is not in the store" in said

    together(10, work)
    assert fsck(kept.ledger, kept.store) == ()


def damage(store: Store, digest: str) -> None:
    for path in store.path(digest).rglob("*"):
        path.chmod(0o644)
        path.write_bytes(b"damaged")


def test_damaged_files_come_back_from_a_copy_with_the_same_hash_and_from_no_other(kept, tmp_path):
    version = kept.ledger.version("triage:1")
    good, bad = tmp_path / "good", tmp_path / "bad"
    shutil.copytree(kept.store.path(version.artifact), good)
    shutil.copytree(good, bad)
    (bad / "adapter_config.json").chmod(0o644)
    (bad / "adapter_config.json").write_text("{}  ")
    damage(kept.store, version.artifact)
    assert repair(kept.ledger, kept.store, lambda digest: [bad]) == ()
    assert fsck(kept.ledger, kept.store) != ()
    (said,) = repair(kept.ledger, kept.store, lambda digest: [bad, good])
    assert said.startswith("triage:1: ")
    assert fsck(kept.ledger, kept.store) == ()


def test_damaged_files_come_back_from_mlflow(sqlite_workshop, mlflow_folder):
    ledger, store = sqlite_workshop.ledger, sqlite_workshop.store
    version = ledger.register(sqlite_workshop.draft("triage"))
    tracker = Tracker(f"sqlite:///{mlflow_folder}/mlflow.db", folder=mlflow_folder)
    assert mirror(ledger, store, tracker).problem is None
    damage(store, version.artifact)
    assert len(repair(ledger, store, in_mlflow(ledger, tracker))) == 1
    assert fsck(ledger, store) == ()


def test_damaged_rubbish_is_removed_and_history_is_never_touched(sqlite_workshop, raw):
    ledger, store = sqlite_workshop.ledger, sqlite_workshop.store
    ledger.register(sqlite_workshop.draft("triage"))
    orphan = store.put_files({"weights": b"x"})
    damage(store, orphan)
    raw.execute("UPDATE names SET last_number = 0")
    lease = ledger.take_lease("make:" + "a" * 64, holder="dead", seconds=0.0)
    ledger.begin_attempt("a" * 64, lease)
    history = [raw.execute(f"SELECT * FROM {table}").fetchall() for table in ("versions", "edges", "specs")]
    said = repair(ledger, store)
    assert len(said) == 3
    assert not store.holds(orphan)
    assert raw.execute("SELECT last_number FROM names").fetchall() == [(1,)]
    assert ledger.attempts("a" * 64)[0].state == "lost"
    assert history == [raw.execute(f"SELECT * FROM {table}").fetchall() for table in ("versions", "edges", "specs")]
    assert repair(ledger, store) == fsck(ledger, store) == ()
