"""MLflow converges to the ledger; saying it twice changes nothing; a killed mirror goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from registry.ledger import Ledger
from registry.mirror import Mirrored, mirror, reconcile
from registry.pages import LIMIT
from registry.store import Store
from registry.tracking import Tracker

FORK = multiprocessing.get_context("fork")


class Family(NamedTuple):
    """A ledger, its store, and the MLflow that it is told to."""

    workshop: Any
    ledger: Ledger
    store: Store
    tracker: Tracker
    folder: Path

    def mirror(self) -> Mirrored:
        return mirror(self.ledger, self.store, self.tracker)

    def reconcile(self) -> Mirrored:
        return reconcile(self.ledger, self.store, self.tracker)


@pytest.fixture(scope="session")
def new_family(make_workshop, mlflow_template: Path) -> Callable[[Path], Family]:
    """triage:1 (with a run of its own), routing:1, triage:2 (replaces 1), all:1 (merged from 2 and routing)."""

    def make(home: Path) -> Family:
        folder, store = home / "mlflow", Store(home / "store")
        folder.mkdir(parents=True)
        shutil.copy(mlflow_template, folder / "mlflow.db")
        tracker = Tracker(f"sqlite:///{folder}/mlflow.db", folder=folder, interval_seconds=0.01)
        workshop = make_workshop(f"sqlite:///{home}/ledger.db", store)
        ledger = workshop.ledger
        data = workshop.dataset("triage")
        with tracker.run(name="triage r16", experiment="triage", params={"method.rank": 16}) as run:
            run.log_steps([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
        base = workshop.evaluation(data, subject=f"base:{workshop.base[:12]}", hits=1)
        told = {"run": run.key, "flow_run": "f-1", "figures": store.put_files({"curve.svg": b"<svg/>"})}
        ledger.register(workshop.draft("triage", 1, evaluations=(base, workshop.evaluation(data)), **told))
        ledger.register(workshop.draft("routing", 1))
        fresh = workshop.dataset("fresh")
        made_from = (("dataset", f"dataset:{fresh}"), ("replay", f"dataset:{data}"), ("previous", "triage:1"))
        scores = (workshop.evaluation(data, hits=8),)
        ledger.register(workshop.draft("triage", 2, parents=made_from, evaluations=scores))
        ledger.register(workshop.merged("all", ("triage:2", "routing:1")))
        ledger.promote("triage", 1, expected=None, decision={}, actor="me", reason="first")
        return Family(workshop, ledger, store, tracker, folder)

    return make


@pytest.fixture
def family(new_family, tmp_path: Path) -> Family:
    """A family of which MLflow knows nothing yet."""
    return new_family(tmp_path / "home")


@pytest.fixture(scope="module")
def mirrored(new_family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family that was mirrored once; only to be looked at."""
    family = new_family(tmp_path_factory.mktemp("mirrored") / "home")
    report = family.mirror()
    assert (report.versions, report.pending, report.problem) == (4, 0, None)
    return family


@pytest.fixture
def pair(make_workshop, mlflow_folder: Path, sqlite_url: str, store: Store) -> Family:
    """The smallest history with everything in it: triage:1 and a model merged from it."""
    tracker = Tracker(f"sqlite:///{mlflow_folder}/mlflow.db", folder=mlflow_folder, interval_seconds=0.01)
    workshop = make_workshop(sqlite_url, store)
    workshop.ledger.register(workshop.draft("triage"))
    workshop.ledger.register(workshop.merged("all", ("triage:1",)))
    workshop.ledger.promote("triage", 1, expected=None, decision={})
    return Family(workshop, workshop.ledger, store, tracker, mlflow_folder)


def everything_in(folder: Path) -> dict[str, object]:
    """Every row of every MLflow table and every artifact file, without MLflow: what must not change."""
    with sqlite3.connect(folder / "mlflow.db", timeout=30) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows: dict[str, object] = {
            name: sorted(map(repr, connection.execute(f"SELECT * FROM {name}"))) for name in tables
        }
    files = [path for path in (folder / "artifacts").rglob("*") if path.is_file()]
    return {**rows, **{str(path): path.stat().st_mtime_ns for path in files}}


def test_every_version_stands_in_mlflow_under_its_number_with_its_tags(mirrored):
    client, ledger = mirrored.tracker.client(), mirrored.ledger
    for version in ledger.versions():
        found = client.get_model_version(version.name, str(version.number))
        assert found.tags["factory.version_key"] == version.version_key
        assert found.tags["factory.version"] == version.ref
        assert found.tags["factory.base"] == version.base
        run = client.get_run(found.run_id)
        assert run.data.tags["factory.version_key"] == version.version_key
        assert run.data.params["method.rank"] == "16"
        assert run.data.metrics["train/loss"] == 0.5
    tags = {ref: client.get_model_version(*ref.split(":")).tags for ref in ("triage:1", "triage:2", "all:1")}
    data = [ref.removeprefix("dataset:") for _, ref in ledger.version("triage:2").parents if "dataset:" in ref]
    assert tags["triage:2"]["factory.datasets"] == ",".join(data)
    assert tags["triage:2"]["lineage.parents"] == "models:/triage/1"
    assert tags["all:1"]["lineage.parents"] == "models:/triage/2,models:/routing/1"
    assert tags["triage:1"]["prefect.flow_run_id"] == "f-1"


def test_the_training_run_of_a_version_is_the_one_that_the_tracker_wrote(mirrored):
    client = mirrored.tracker.client()
    run = client.get_run(client.get_model_version("triage", "1").run_id)
    assert run.data.tags["factory.run"] == mirrored.ledger.version("triage:1").run
    assert [point.value for point in client.get_metric_history(run.info.run_id, "loss")] == [2.0, 1.0]
    assert run.data.metrics["test/exact_match"] == 0.7


def test_an_adapter_brings_its_files_and_a_merged_model_its_manifest(mirrored):
    client, store = mirrored.tracker.client(), mirrored.store

    def files(ref: str) -> dict[str, bytes]:
        run = client.get_run(client.get_model_version(*ref.split(":")).run_id)
        place = Path(run.info.artifact_uri.removeprefix("file://"))
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}

    kept = store.path(mirrored.ledger.version("triage:1").artifact)
    expected = {f"adapter/{path.name}": path.read_bytes() for path in kept.iterdir()}
    found = files("triage:1")
    assert found.pop("lineage/lineage.md").startswith(b"```mermaid\nflowchart LR")
    assert found == {**expected, "figures/curve.svg": b"<svg/>"}
    merged = files("all:1")
    assert set(merged) == {"adapter/manifest.json", "adapter/adapter_config.json", "lineage/lineage.md"}
    manifest = store.manifest(mirrored.ledger.version("all:1").artifact)
    assert json.loads(merged["adapter/manifest.json"]) == [entry._asdict() for entry in manifest]


def test_inputs_link_data_sets_and_parent_models(mirrored):
    client = mirrored.tracker.client()

    def made(ref: str) -> str:
        run = client.get_run(client.get_model_version(*ref.split(":")).run_id)
        (output,) = run.outputs.model_outputs
        return output.model_id

    retrained = client.get_run(client.get_model_version("triage", "2").run_id)
    given = {(entry.dataset.digest, entry.tags[0].value) for entry in retrained.inputs.dataset_inputs}
    fresh, replay, _ = (ref.removeprefix("dataset:")[:36] for _, ref in mirrored.ledger.version("triage:2").parents)
    assert given == {(fresh, "training"), (replay, "replay")}
    assert [entry.model_id for entry in retrained.inputs.model_inputs] == [made("triage:1")]
    merged = client.get_run(client.get_model_version("all", "1").run_id)
    assert {entry.model_id for entry in merged.inputs.model_inputs} == {made("triage:2"), made("routing:1")}


def test_pages_show_scores_beside_base_and_previous_and_link_relatives(mirrored):
    client = mirrored.tracker.client()
    refs = ("triage:1", "triage:2", "all:1")
    pages = [client.get_model_version(*ref.split(":")).description for ref in refs]
    first, second, merged = pages
    row = next(line for line in second.splitlines() if "exact_match" in line)
    assert [cell.strip("\u00a0 ") for cell in row.split("|")][5:9] == ["0.100", "0.700", "**0.800**", "0.700–0.900"]
    assert "[triage:2](#/models/triage/versions/2)" in first
    assert "- previous: [triage:1](#/models/triage/versions/1)" in second
    assert "- parent of [all:1](#/models/all/versions/1)" in second
    assert "- parent: [routing:1](#/models/routing/versions/1)" in merged
    assert "├─ parent: triage:2 (adapter)\n│  ├─ base: base:" in merged
    assert max(map(len, pages)) <= LIMIT
    for ref, page in zip(refs, pages, strict=True):
        run = client.get_run(client.get_model_version(*ref.split(":")).run_id)
        assert run.data.tags["mlflow.note.content"] == page
    history = client.get_registered_model("triage").description
    row = next(line for line in history.splitlines() if "first" in line and "triage:1" in line)
    cells = [cell.strip("\u00a0 ") for cell in row.split("|")]
    assert cells[1:-1] == ["1", "[triage:1](#/models/triage/versions/1)", "", "me", "first"]


def test_saying_it_again_changes_nothing(mirrored):
    before = everything_in(mirrored.folder)
    assert mirrored.mirror() == (0, 0, 0, None)
    assert mirrored.reconcile() == (4, 0, 0, None)
    assert everything_in(mirrored.folder) == before


def test_a_mirror_in_pieces_ends_where_a_mirror_at_once_ends(family):
    ledger, workshop, client = family.ledger, family.workshop, family.tracker.client()
    family.mirror()
    fresh = workshop.dataset("slice")
    ledger.remember_evaluations([workshop.evaluation(fresh, subject="triage:1", hits=4)])
    ledger.register(workshop.merged("more", ("routing:1",)))
    report = family.mirror()
    assert (report.pending, report.problem) == (0, None)
    assert family.reconcile().changes == 0
    run = client.get_run(client.get_model_version("triage", "1").run_id)
    assert "[more:1](#/models/more/versions/1)" in client.get_model_version("routing", "1").description
    assert run.data.metrics[f"test/exact_match/{fresh[:12]}"] == 0.4
    assert run.data.metrics["test/exact_match"] == 0.7


def test_aliases_follow_the_ledger_through_promotion_and_rollback(pair):
    ledger, client = pair.ledger, pair.tracker.client()
    ledger.register(pair.workshop.draft("triage", 2))

    def aliases() -> dict[str, str]:
        pair.mirror()
        return {alias: str(number) for alias, number in client.get_registered_model("triage").aliases.items()}

    assert aliases() == {"champion": "1", "challenger": "2"}
    ledger.promote("triage", 2, expected=1, decision={})
    assert aliases() == {"champion": "2"}
    ledger.rollback("triage")
    assert aliases() == {"champion": "1"}
    assert client.get_model_version_by_alias("triage", "champion").tags["factory.version"] == "triage:1"


def test_moves_are_told_alone_whatever_else_waits(pair):
    ledger, client = pair.ledger, pair.tracker.client()
    ledger.register(pair.workshop.draft("triage", 2))
    ledger.promote("triage", 2, expected=1, decision={})
    pair.mirror()
    late = ledger.register(pair.workshop.draft("triage", 3))
    ledger.rollback("triage")
    report = mirror(ledger, pair.store, pair.tracker, moves_of="triage")
    assert (report.versions, report.pending, report.problem) == (0, 1, None)
    assert str(client.get_model_version_by_alias("triage", "champion").version) == "1"
    assert [(entry.topic, entry.number) for entry in ledger.pending()] == [("version", late.number)]
    assert pair.mirror().pending == 0


STEPS = ("mirror.after_run", "mirror.after_model", "mirror.before_delivered")
CRASHES = [f"{step}=kill@{turn}" for step in STEPS[:2] for turn in (1, 2)] + [f"{STEPS[2]}=kill"]


@pytest.mark.parametrize("crash", CRASHES)
def test_a_killed_mirror_goes_on_and_doubles_nothing(pair, monkeypatch, crash):
    monkeypatch.setattr("registry.mirror.LEASE_SECONDS", 0.0)  # the killed one's lease ends at once

    def work() -> None:
        os.environ["FACTORY_FAILPOINT"] = crash
        pair.mirror()

    child = FORK.Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(pair.ledger.pending()) == 3
    assert pair.mirror().pending == 0
    with sqlite3.connect(pair.folder / "mlflow.db") as connection:
        numbers = connection.execute("SELECT name, version FROM model_versions ORDER BY name, version").fetchall()
        (models,) = connection.execute("SELECT count(*) FROM logged_models").fetchone()
        (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    assert numbers == [("all", 1), ("triage", 1)]
    assert (models, runs) == (2, 2)
    assert pair.reconcile().changes == 0


def test_a_failing_step_is_reported_and_loses_nothing(pair, monkeypatch):
    monkeypatch.setenv("FACTORY_FAILPOINT", "mirror.after_model=errno:5")
    report = pair.mirror()
    assert report.problem.code == "E-MLFLOW-001"
    assert report.pending == len(pair.ledger.pending()) == 3
    monkeypatch.delenv("FACTORY_FAILPOINT")
    assert pair.mirror().pending == 0


def test_a_mlflow_that_is_down_is_a_report_and_not_an_exception(pair, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Tracker("http://me:CANARY@127.0.0.1:9", folder=pair.folder)
    report = mirror(pair.ledger, pair.store, away)
    assert report.pending == 3
    assert report.problem.code == "E-MLFLOW-001"
    assert "CANARY" not in str(report.problem)


def test_what_people_break_in_mlflow_reconcile_mends(family):
    family.mirror()
    client = family.tracker.client()
    client.delete_registered_model_alias("triage", "champion")
    client.set_registered_model_alias("triage", "challenger", "1")
    client.update_model_version("triage", "1", "vandalised")
    client.set_model_version_tag("triage", "2", "factory.base", "forged")
    client.delete_model_version("all", "1")
    assert family.reconcile().problem is None
    assert client.get_registered_model("triage").aliases == {"champion": 1, "challenger": 2}
    assert "vandalised" not in client.get_model_version("triage", "1").description
    assert client.get_model_version("triage", "2").tags["factory.base"] == family.workshop.base
    found = client.search_model_versions("name = 'all'")
    assert [version.tags["factory.version"] for version in found] == ["all:1"]
    assert family.reconcile().changes == 0


def test_two_mirrors_do_not_work_at_once(pair):
    lease = pair.ledger.take_lease("mirror", holder="the other", seconds=60)
    report = pair.mirror()
    assert (report.changes, report.problem.code) == (0, "E-MLFLOW-003")
    pair.ledger.release_lease(lease)
    assert pair.mirror().pending == 0


def test_a_run_that_mlflow_missed_is_delivered_into_the_run_that_the_mirror_made(pair, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Tracker("http://127.0.0.1:9", folder=pair.folder, patience_seconds=0.1)
    with away.run(name="early", experiment="triage") as run:
        run.log_steps([{"step": 1, "loss": 3.0}])
    pair.ledger.register(pair.workshop.draft("late", run=run.key))
    pair.mirror()
    client = pair.tracker.client()
    found = client.get_model_version("late", "1").run_id
    for _ in range(100):
        if not any(pair.tracker.spool.iterdir()):
            break
        pair.tracker.deliver()
    assert [point.value for point in client.get_metric_history(found, "loss")] == [3.0]
    with sqlite3.connect(pair.folder / "mlflow.db") as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (3,)
