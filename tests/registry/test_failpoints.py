"""Killed at any step of registering, the ledger is as before or as after; and every failpoint is reached by a test."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

import registry
from registry.errors import Conflict
from registry.failpoint import failpoint
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.store import Store

FORK = multiprocessing.get_context("fork")


def failpoints() -> set[str]:
    """Every name that production code gives to `failpoint(...)`."""
    names = set()
    for path in Path(registry.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                assert isinstance(node.args[0], ast.Constant), f"{path}: a failpoint's name is written out"
                names.add(node.args[0].value)
    return names


def test_every_failpoint_is_named_in_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    steps = {"store.write", "store.fsync", "store.before_rename", "store.after_rename"}  # test_store.py builds these
    assert failpoints() >= steps
    assert {name for name in failpoints() - steps if f"{name}" not in tests} == set()


def killed(url: str, root: Path, crash: str, work) -> int | None:
    """Run `work(ledger)` in a child that dies at the failpoint."""

    def child_work() -> None:
        os.environ["FACTORY_FAILPOINT"] = crash
        with Ledger.open(url, store=Store(root)) as ledger:
            work(ledger)

    child = FORK.Process(target=child_work)
    child.start()
    child.join(60)
    return child.exitcode


@pytest.mark.parametrize("step", ["ledger.before_commit", "ledger.after_commit"])
def test_a_killed_registration_is_whole_or_absent_and_a_retry_gives_the_same_version(url, workshop, step):
    data = workshop.dataset("triage")
    workshop.ledger.register(workshop.draft("triage", "before"))
    draft = workshop.draft("triage", "killed", evaluations=(workshop.evaluation(data),))
    assert killed(url, workshop.store.root, f"{step}=kill", lambda ledger: ledger.register(draft)) == -signal.SIGKILL
    standing = workshop.ledger.by_key(draft.version_key)
    assert (standing is not None) == (step == "ledger.after_commit")
    assert fsck(workshop.ledger, workshop.store) == ()
    assert workshop.ledger.register(draft).number == 2
    assert len(workshop.ledger.evaluations("triage:2")) == 1
    assert [entry.number for entry in workshop.ledger.pending()] == [1, 2]
    assert fsck(workshop.ledger, workshop.store) == ()


def test_a_killed_promotion_moves_nothing_and_holds_no_lock(url, workshop):
    for place in range(2):
        workshop.ledger.register(workshop.draft("triage", place))
    workshop.ledger.promote("triage", 1, expected=None, decision={})

    def promote(ledger: Ledger) -> None:
        ledger.promote("triage", 2, expected=1, decision={})

    assert killed(url, workshop.store.root, "ledger.promote=kill", promote) == -signal.SIGKILL
    assert workshop.ledger.champion("triage").number == 1
    promote(workshop.ledger)
    with pytest.raises(Conflict):
        promote(workshop.ledger)
    assert fsck(workshop.ledger, workshop.store) == ()


def test_an_error_before_the_commit_leaves_nothing(workshop, monkeypatch):
    monkeypatch.setenv("FACTORY_FAILPOINT", "ledger.before_commit=errno:5")
    with pytest.raises(OSError, match="Input/output"):
        workshop.ledger.register(workshop.draft("triage"))
    monkeypatch.delenv("FACTORY_FAILPOINT")
    assert workshop.ledger.names() == ()
    assert workshop.ledger.pending() == ()
    assert workshop.ledger.register(workshop.draft("triage")).number == 1


def test_a_failpoint_acts_on_its_turn_only(monkeypatch):
    monkeypatch.setenv("FACTORY_FAILPOINT", "a.step=errno:28@3")
    for _ in range(2):
        failpoint("a.step")
    failpoint("another.step")
    with pytest.raises(OSError, match="No space"):
        failpoint("a.step")
    failpoint("a.step")
    monkeypatch.setenv("FACTORY_FAILPOINT", "b.step=explode")
    with pytest.raises(ValueError, match="explode"):
        failpoint("b.step")
