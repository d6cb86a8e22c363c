"""Killed, failed or delayed at any step, the ledger is as before or as after; and no step is left out."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flows
import registry
from flows.keep import kept
from registry.errors import Conflict
from registry.failpoint import failpoint
from registry.fingerprint import digest_of_folder, manifest_of
from registry.fsck import fsck
from registry.ledger import Ledger
from registry.manifest import binding_of
from registry.mirror import reconcile
from registry.store import Store
from registry.sweep import DAY_SECONDS, sweep
from registry.tracking import Tracker

FORK = multiprocessing.get_context("fork")


def failpoints() -> set[str]:
    """Every name that production code gives to `failpoint(...)`."""
    names = set()
    for package in (registry, flows):
        for path in Path(package.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                    assert isinstance(node.args[0], ast.Constant), f"{path}: a failpoint's name is written out"
                    names.add(node.args[0].value)
    return names


class Scene:
    """A ledger with a champion, its successor, rubbish, and things that are about to happen to it."""

    def __init__(self, workshop: Any, url: str, folder: Path, versions: int) -> None:
        self.url, self.workshop, self.ledger, self.store = url, workshop, workshop.ledger, workshop.store
        for place in range(versions):
            self.ledger.register(workshop.draft("triage", place))
        if versions > 1:
            self.ledger.register(workshop.merged("all", ("triage:1", "triage:2")))
        self.ledger.promote("triage", 1, expected=None, decision={})
        self.rubbish = self.store.put_files({"orphan": b"of a killed run"})
        self.folder = folder / "adapter"
        self.folder.mkdir()
        (self.folder / "adapter_model.safetensors").write_bytes(b"weights" * 100)
        data = workshop.dataset("triage")
        artifact = digest_of_folder(self.folder)
        self.draft = workshop.draft(
            "triage", "new", artifact=artifact, evaluations=(workshop.evaluation(data),), binds={"head": "x"}
        )
        self.mlflow = folder / "home" / "mlflow"

    def reopened(self) -> Scene:
        """The same scene through a ledger and a store of another process's own."""
        scene = copy(self)
        scene.store = Store(self.store.root)
        scene.ledger = Ledger.open(self.url, store=scene.store, signer=self.ledger.signer)
        return scene

    def later_seconds(self) -> float:
        return time.time() + 2 * DAY_SECONDS


def register(scene: Scene) -> object:
    scene.store.put(scene.folder)
    version = scene.ledger.register(scene.draft)
    return (version.ref, version.artifact, version.manifest)


def promote(scene: Scene) -> object:
    champion = scene.ledger.champion("triage")
    assert champion is not None
    if champion.number == 1:
        scene.ledger.promote("triage", 2, expected=1, decision={})
    return [(link.seq, link.previous, link.number) for link in scene.ledger.history("triage")]


def withdraw(scene: Scene) -> object:
    scene.ledger.withdraw("triage:2", reason="leaked")
    return [(record.version, record.cause) for record in scene.ledger.withdrawals()]


def collect(scene: Scene) -> object:
    sweep(scene.ledger, scene.store, now_seconds=scene.later_seconds())
    return (scene.store.holds(scene.rubbish), list((scene.store.root / "tmp").iterdir()))


def merge(scene: Scene) -> object:
    """C08: the folder of a merged model written, stored and registered; a rerun gives the same bytes."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for place in range(3):
            (folder / f"model-{place}.safetensors").write_bytes(bytes([place]) * 1000)

    artifact = kept(SimpleNamespace(store=scene.store, scratch=lambda: scene.folder.parent), write)  # type: ignore[arg-type]
    draft = replace(scene.workshop.merged("both", ("triage:1", "triage:2")), artifact=artifact)
    version = scene.ledger.register(draft)
    return (version.ref, sorted(path.name for path in scene.store.path(version.artifact).iterdir()))


def tell(scene: Scene) -> object:
    """The mirror, and the journal of a training run: what MLflow shows, read without MLflow."""
    tracker = Tracker(f"sqlite:///{scene.mlflow}/mlflow.db", folder=scene.mlflow, interval_seconds=60)
    if not (scene.mlflow / "said").exists():
        with tracker.run(name="r", experiment="triage") as run:
            run.log_steps([{"step": 1, "loss": 0.5}])
            (scene.mlflow / "said").touch()
    report = reconcile(scene.ledger, scene.store, tracker)
    assert report.problem is None, report.problem
    with sqlite3.connect(scene.mlflow / "mlflow.db", timeout=30) as connection:
        asked = ("SELECT count(*) FROM metrics WHERE key = 'loss'", "SELECT name, version FROM model_versions")
        return [sorted(connection.execute(query).fetchall()) for query in asked]


STEPS: dict[str, Callable[[Scene], object]] = {
    "store.write": register,
    "store.fsync": register,
    "store.before_rename": register,
    "store.after_rename": register,
    "register.after_manifest": register,
    "register.after_seal": register,
    "register.before_commit": register,
    "register.after_commit": register,
    "promote.before_link": promote,
    "promote.before_commit": promote,
    "promote.after_commit": promote,
    "withdraw.before_commit": withdraw,
    "gc.before_rename": collect,
    "gc.after_rename": collect,
    "gc.before_commit": collect,
    "gc.after_commit": collect,
    "gc.before_erase": collect,
    "merge.before_write": merge,
    "merge.after_write": merge,
    "mirror.after_run": tell,
    "mirror.after_model": tell,
    "mirror.before_delivered": tell,
    "delivery.before_note": tell,
}
ELSEWHERE = {
    f"remote.{step}": "test_store_contract.py" for step in ("before_file", "before_manifest", "after_manifest")
}
ELSEWHERE |= {"traffic.after_batch": "../flows/test_traffic.py"}
KINDS = ("kill", "errno:5", "sleep:0.01")


def test_every_failpoint_is_exercised_by_kill_error_and_delay():
    """The campaign below does all three at each step of this table."""
    assert failpoints() == STEPS.keys() | ELSEWHERE.keys()
    for name, file in ELSEWHERE.items():
        assert name in (Path(__file__).parent / file).read_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", STEPS)
def test_after_a_kill_an_error_or_a_delay_all_invariants_hold_and_a_retry_comes_to_the_same(
    step, kind, sqlite_url, sqlite_workshop, mlflow_folder, tmp_path, raw
):
    """C06, C07, C09: whatever happens at a step, fsck is clean before and after the retry, and what the retry comes to
    is what an undisturbed process comes to."""
    act = STEPS[step]
    scene = Scene(sqlite_workshop, sqlite_url, tmp_path, versions=1 if act is tell else 2)  # MLflow is slow
    undisturbed = expected_of(act, scene)

    def child_work() -> None:
        os.environ["FACTORY_FAILPOINT"] = f"{step}={kind}"
        try:
            act(scene.reopened())
        except (OSError, AssertionError):  # the mirror says it in its report
            os._exit(7)

    child = FORK.Process(target=child_work)
    child.start()
    child.join(60)
    heard = 0 if step == "delivery.before_note" else 7  # a delivery that fails is tried again at once
    assert child.exitcode == {"kill": -signal.SIGKILL, "errno:5": heard, "sleep:0.01": 0}[kind]
    raw.execute("UPDATE leases SET expires_seconds = 0")  # what a dead process held runs out
    assert fsck(scene.ledger, scene.store) == ()
    assert act(scene.reopened()) == undisturbed
    assert fsck(scene.ledger, scene.store) == ()


def expected_of(act: Callable[[Scene], object], scene: Scene) -> object:
    """What comes of it when nothing goes wrong, written down by hand."""
    if act is register:
        manifest = scene.store.put_files({"manifest.json": binding_of(scene.draft, manifest_of(scene.folder))})
        return ("triage:3", scene.draft.artifact, manifest)
    return {
        promote: [(1, None, 1), (2, 1, 2)],
        withdraw: [("triage:2", "triage:2"), ("all:1", "triage:2")],
        collect: (False, []),
        merge: ("both:1", [f"model-{place}.safetensors" for place in range(3)]),
        tell: [[(1,)], [("triage", 1)]],
    }[act]


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


@pytest.mark.parametrize("step", ["register.before_commit", "register.after_commit"])
def test_a_killed_registration_is_whole_or_absent_and_a_retry_gives_the_same_version(url, workshop, step):
    data = workshop.dataset("triage")
    workshop.ledger.register(workshop.draft("triage", "before"))
    draft = workshop.draft("triage", "killed", evaluations=(workshop.evaluation(data),))
    assert killed(url, workshop.store.root, f"{step}=kill", lambda ledger: ledger.register(draft)) == -signal.SIGKILL
    standing = workshop.ledger.by_key(draft.version_key)
    assert (standing is not None) == (step == "register.after_commit")
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

    assert killed(url, workshop.store.root, "promote.before_link=kill", promote) == -signal.SIGKILL
    assert workshop.ledger.champion("triage").number == 1
    promote(workshop.ledger)
    with pytest.raises(Conflict):
        promote(workshop.ledger)
    assert fsck(workshop.ledger, workshop.store) == ()


def test_an_error_before_the_commit_leaves_nothing(workshop, monkeypatch):
    monkeypatch.setenv("FACTORY_FAILPOINT", "register.before_commit=errno:5")
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
