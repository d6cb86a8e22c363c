"""A ledger to break: on SQLite and on a PostgreSQL of our own, with things to register and an MLflow to look into."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import queue
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from registry.ledger import Ledger
from registry.records import BaseRecord, CodeRecord, DatasetRecord, EvaluationRecord, Parent, VersionDraft
from registry.store import Store
from registry.tracking import Tracker

os.environ.setdefault("OMP_NUM_THREADS", "1")
FORK = multiprocessing.get_context("fork")


def sha(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Workshop:
    """Makes what a factory makes: folders in the store, and drafts that name them."""

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self.ledger = ledger
        self.store = store
        self.base = ledger.remember_base(BaseRecord(sha("base"), "stories-260k", None, "llama", 260_000)).digest
        self.code = ledger.remember_code(CodeRecord(sha("code"), {"tasks": sha("tasks")}, {"torch": "2.13.0"})).digest

    def artifact(self, *identity: object, files: int = 2) -> str:
        data = {f"part{i}.safetensors": f"{identity!r} {i}".encode() * 50 for i in range(files)}
        return self.store.put_files({"adapter_config.json": b"{}", **data})

    def dataset(self, *identity: object, task: str = "triage") -> str:
        digest = self.store.put_files({"examples.parquet": f"rows {identity!r}".encode()})
        counts = {"train": 80, "validation": 10, "test": 5}
        self.ledger.remember_dataset(DatasetRecord(digest, task, "rows.jsonl", sha(identity), 100, counts, 3, 2))
        return digest

    def draft(self, name: str = "triage", *identity: object, **changes: object) -> VersionDraft:
        fields: dict[str, object] = {
            "name": name,
            "kind": "adapter",
            "version_key": sha(name, identity),
            "artifact": self.artifact(name, identity),
            "base": self.base,
            "code": self.code,
            "spec": {"task": name, "method": {"name": "lora", "rank": 16}, "seed": 0},
            "metrics": {"train/loss": 0.5},
        }
        if "parents" not in changes:
            fields["parents"] = (Parent("dataset", f"dataset:{self.dataset(name)}"),)
        return VersionDraft(**{**fields, **changes})  # type: ignore[arg-type]

    def merged(self, name: str, parents: tuple[str, ...], *identity: object) -> VersionDraft:
        edges = tuple(Parent("parent", ref) for ref in parents)
        return self.draft(name, *identity, kind="merged", parents=edges)

    def evaluation(
        self, dataset: str, *, subject: str = "", hits: int = 7, rows: int = 10, side: str = "test"
    ) -> EvaluationRecord:
        keys = tuple(sha("row", dataset, place) for place in range(rows))
        outcomes = tuple(1.0 if place < hits else 0.0 for place in range(rows))
        score = hits / rows
        return EvaluationRecord(
            dataset, side, "exact_match", score, rows, score - 0.1, score + 0.1, keys, outcomes, (), subject
        )


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests kill processes, never the power: what was written is there without fsync. The order of fsyncs is
    a test of its own."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("registry.database.SYNCHRONOUS", "OFF")


BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=BOTH)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/home/ledger.db"
    return request.getfixturevalue("empty_postgres_url")


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite ledger with its tables, built once and copied."""
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    Ledger.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_file: Path) -> str:
    (tmp_path / "home").mkdir(exist_ok=True)
    shutil.copy(migrated_file, tmp_path / "home" / "ledger.db")
    return f"sqlite:///{tmp_path}/home/ledger.db"


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest) -> str:
    """A ledger of each kind with its tables and nothing in them."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture(scope="session")
def make_workshop() -> Iterator[Callable[[str, Store], Workshop]]:
    """A workshop on any database and store."""
    opened: list[Ledger] = []

    def make(url: str, store: Store) -> Workshop:
        opened.append(Ledger.open(url, store=store))
        return Workshop(opened[-1], store)

    yield make
    for ledger in opened:
        ledger.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home" / "store")


@pytest.fixture
def ledger(url: str, store: Store) -> Iterator[Ledger]:
    with Ledger.open(url, store=store) as ledger:
        yield ledger


@pytest.fixture
def workshop(ledger: Ledger, store: Store) -> Workshop:
    return Workshop(ledger, store)


@pytest.fixture
def sqlite_workshop(sqlite_url: str, store: Store) -> Iterator[Workshop]:
    with Ledger.open(sqlite_url, store=store) as ledger:
        yield Workshop(ledger, store)


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The SQLite ledger as the sqlite3 module sees it, without any of our code."""
    connection = sqlite3.connect(tmp_path / "home" / "ledger.db", timeout=30, isolation_level=None)
    yield connection
    connection.close()


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    """Run `work(place, ready)` in so many processes; `ready()` lets all go on at one moment. Their answers, by place.

    Each has to come to its end: one that raises or hangs fails the test.
    """

    def run(count: int, work: Callable[[int, Callable[[], object]], Any]) -> list[Any]:
        barrier, said = FORK.Barrier(count), FORK.Queue()
        children = [
            FORK.Process(target=lambda at: said.put((at, work(at, lambda: barrier.wait(60)))), args=(place,))
            for place in range(count)
        ]
        for child in children:
            child.start()
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + 300
        while len(answers) < count and time.monotonic() < deadline:
            with suppress(queue.Empty):
                place, answer = said.get(timeout=0.2)
                answers[place] = answer
            if any(child.exitcode for child in children):
                break
        for child in children:
            child.join(5)
        assert [child.exitcode for child in children] == [0] * count
        return [answers[place] for place in range(count)]

    return run


# PostgreSQL --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def migrated_database(postgres_server: str, database_on: Any) -> str:
    """The name of a database with the ledger's tables, built once and copied."""
    with database_on(postgres_server, keep=True) as url:
        Ledger.open(url).close()
    return url.rpartition("?")[0].rpartition("/")[2]


@pytest.fixture
def postgres_url(postgres_server: str, migrated_database: str, database_on: Any) -> Iterator[str]:
    with database_on(postgres_server, f"TEMPLATE {migrated_database}") as url:
        yield url


# MLflow ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mlflow_folder(mlflow_template: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(mlflow_template, folder / "mlflow.db")
    return folder


@pytest.fixture
def tracker(mlflow_folder: Path) -> Tracker:
    return Tracker(f"sqlite:///{mlflow_folder}/mlflow.db", folder=mlflow_folder, interval_seconds=0.01)
