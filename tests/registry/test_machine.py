"""K02: register, promote, roll back, withdraw and sweep in any order: the ledger says what a plain model says."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from registry.errors import Conflict, IntegrityError, Unknown
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.store import Store
from registry.sweep import DAY_SECONDS, sweep

NAMES = ("triage", "routing")


class Machine(RuleBasedStateMachine):
    """The ledger beside lists: versions with what they contain, stacks of champions, a set of what is withdrawn."""

    template: Path
    make_workshop: object

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="factory-machine-"))
        shutil.copy(self.template, self.folder / "ledger.db")
        self.store = Store(self.folder / "store")
        self.workshop = self.make_workshop(f"sqlite:///{self.folder}/ledger.db", self.store)  # type: ignore[operator]
        self.ledger: Ledger = self.workshop.ledger
        self.counts = dict.fromkeys((*NAMES, "all"), 0)
        self.contains: dict[str, set[str]] = {}  # version -> versions it was made from, near and far
        self.stack: dict[str, list[int]] = {name: [] for name in self.counts}
        self.links: dict[str, int] = dict.fromkeys(self.counts, 0)
        self.withdrawn: set[str] = set()
        self.orphans: set[str] = set()
        self.drafts: list = []

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(name=st.sampled_from(NAMES))
    def register(self, name: str) -> None:
        draft = self.workshop.draft(name, len(self.contains))
        version = self.ledger.register(draft)
        self.counts[name] += 1
        assert version.number == self.counts[name]
        self.contains[version.ref] = set()
        self.drafts.append((draft, version.ref))

    @precondition(lambda self: self.drafts)
    @rule(pick=st.randoms(use_true_random=False))
    def register_again(self, pick) -> None:
        draft, ref = pick.choice(self.drafts)
        assert self.ledger.register(draft).ref == ref

    @precondition(lambda self: self.contains)
    @rule(pick=st.randoms(use_true_random=False))
    def merge(self, pick) -> None:
        parents = pick.sample(sorted(self.contains), min(2, len(self.contains)))
        draft = self.workshop.merged("all", tuple(parents), len(self.contains))
        if set(parents) & self.withdrawn:
            with pytest.raises(IntegrityError):
                self.ledger.register(draft)
            self.orphans.add(draft.artifact)
            return
        version = self.ledger.register(draft)
        self.counts["all"] += 1
        self.contains[version.ref] = set(parents).union(*(self.contains[parent] for parent in parents))

    @precondition(lambda self: self.contains)
    @rule(pick=st.randoms(use_true_random=False), stale=st.booleans())
    def promote(self, pick, stale: bool) -> None:
        ref = pick.choice(sorted(self.contains))
        name, number = ref.split(":")[0], int(ref.split(":")[1])
        stack = self.stack[name]
        champion = stack[-1] if stack else None
        expected = (champion or 0) + 1 if stale else champion
        if stale or ref in self.withdrawn or number == champion:
            with pytest.raises((Conflict, IntegrityError)):
                self.ledger.promote(name, number, expected=expected, decision={})
            return
        self.ledger.promote(name, number, expected=expected, decision={})
        stack.append(number)
        self.links[name] += 1

    @rule(name=st.sampled_from((*NAMES, "all")))
    def rollback(self, name: str) -> None:
        stack = self.stack[name]
        way_back = [n for n in stack[:-1] if stack and n != stack[-1] and f"{name}:{n}" not in self.withdrawn]
        if not way_back:
            with pytest.raises(Unknown):
                self.ledger.rollback(name)
            return
        assert self.ledger.rollback(name).number == way_back[-1]
        stack.pop()
        while stack[-1] != way_back[-1]:
            stack.pop()
        self.links[name] += 1

    @precondition(lambda self: self.contains)
    @rule(pick=st.randoms(use_true_random=False))
    def withdraw(self, pick) -> None:
        ref = pick.choice(sorted(self.contains))
        wanted = {ref, *(other for other, inside in self.contains.items() if ref in inside)} - self.withdrawn
        assert {record.version for record in self.ledger.withdraw(ref, reason="drawn")} == wanted
        self.withdrawn |= wanted

    @rule()
    def drop_an_orphan(self) -> None:
        self.orphans.add(self.store.put_files({"weights": os.urandom(8)}))

    @rule(days=st.sampled_from((0.5, 2.0)))
    def collect(self, days: float) -> None:
        taken = {r.name for r in sweep(self.ledger, self.store, now_seconds=time.time() + days * DAY_SECONDS)}
        assert taken >= self.orphans if days > 1 else taken == set()
        self.orphans -= taken

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        for name, stack in self.stack.items():
            champion = self.ledger.champion(name)
            assert (champion.number if champion else None) == (stack[-1] if stack else None)
            if champion is not None:
                assert self.store.path(champion.artifact).is_dir()
        assert {record.version for record in self.ledger.withdrawals()} == self.withdrawn

    @invariant()
    def every_promise_holds(self) -> None:
        assert fsck(self.ledger, self.store) == ()
        for name, count in self.links.items():
            if self.counts[name]:
                assert [link.seq for link in self.ledger.history(name)] == list(range(1, count + 1))


def test_any_history_of_moves_agrees_with_a_plain_model(migrated_file, make_workshop):
    Machine.template, Machine.make_workshop = migrated_file, staticmethod(make_workshop)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(os.environ.get("FACTORY_EXAMPLES", "5")),
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
