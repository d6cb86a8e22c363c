"""A real factory in a temporary home: tasks that a tiny random base learns in seconds, and witnesses to look into it.

What is expensive happens once: three adapters are trained, one of them is moved by traffic and taught again, all are
merged. Tests look at what came of it, and leave it as it is or say why not.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ruamel.yaml import YAML

ROWS = 280  # of each task; four in ten of them judge


def _hear_ctrl_c() -> None:
    """A background job of a shell ignores Ctrl-C, and so would every process that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Task:
    """A made-up task: one of four key words stands among others, and its label must be said."""

    name: str
    keys: Sequence[str]
    labels: Sequence[str]
    fillers: Sequence[str]

    def rows(self, count: int, seed: int) -> list[dict[str, str]]:
        """Distinct rows, the four keys about equally often."""
        draw, found = Random(f"{self.name} {seed}"), {}
        while len(found) < count:
            place = draw.randrange(len(self.keys))
            words = [*draw.choices(self.fillers, k=draw.randint(1, 3)), self.keys[place]]
            draw.shuffle(words)
            found[" ".join(words)] = self.labels[place]
        return [{"text": text, "label": label} for text, label in found.items()]


@dataclass(frozen=True)
class Said:
    """What one command came to."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


@dataclass
class Factory:
    """One home, the commands on it, and eyes of its own: sqlite3, hashlib, MLflow's client."""

    folder: Path
    base: Path
    encoder: Path
    api: str
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @contextmanager
    def active(self) -> Iterator[None]:
        """The process's environment is this home's while the block runs."""
        before = dict(os.environ)
        os.environ |= {"FACTORY_HOME": str(self.home), **self.settings}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    # What is asked --------------------------------------------------------------------------------------------------

    def rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def traffic(self, name: str, rows: Sequence[Mapping[str, str]], *, labelled: bool = True) -> Path:
        """Rows as they arrive: with an id, a time and a sender; without the truth where it is not known."""
        times = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=place) for place in range(len(rows)))
        arrived = [
            {"id": f"{name} {place}", "time": time.isoformat(), "source": f"customer {place % 17}", **row}
            for place, (time, row) in enumerate(zip(times, rows, strict=True))
        ]
        return self.rows(name, [row if labelled else {**row, "label": None} for row in arrived])

    def spec(self, task: Task, name: str = "", /, *, data: Path | None = None, **changes: Any) -> Path:
        """A spec file; `section__key=value` changes it, and None takes the key out."""
        source = data or self.rows(f"{task.name}.jsonl", task.rows(ROWS, seed=0))
        tree: dict[str, Any] = {
            "task": task.name,
            "kind": "generation",
            "base": {"model": str(self.base)},
            "data": {
                "source": str(source),
                "prompt": f"{{text}} {task.name}:",
                "completion": " {label}",
                "split": {"validation": 0.1, "test": 0.4},
            },
            "method": {"rank": 8, "dropout": 0.0},
            "training": {"steps": 60, "learning_rate": 1e-2, "batch_size": 32, "validations": 2},
            "evaluation": {"gates": {"min_rows": 30, "max_forgetting": 0.2}},
            "drift": {"min_rows": 30},
            "retrain": {"start": "base"},
            "resources": {"threads": 1},
        }
        for path, value in changes.items():
            *sections, key = path.split("__")
            place = tree
            for section in sections:
                place = place.setdefault(section, {})
            if value is None:
                place.pop(key, None)
            else:
                place[key] = value
        return self.yaml(name or task.name, tree)

    def recipe(self, name: str, parents: Sequence[str], **changes: Any) -> Path:
        tree = {"name": name, "parents": list(parents), "rules": [{"rule": "average"}], "baselines": False, **changes}
        tree.setdefault("dtype", "float32")
        return self.yaml(f"{name} recipe", {**tree, "resources": {"threads": 1}})

    def yaml(self, name: str, tree: Any) -> Path:
        path = self.folder / f"{name}.yaml"
        with path.open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(tree, file)
        return path

    # What is done ---------------------------------------------------------------------------------------------------

    def run(self, *words: object) -> Said:
        """The command line in this process."""
        from flows.cli import main

        out, err = io.StringIO(), io.StringIO()
        with self.active(), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return Said(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def start(self, *words: object, **variables: str) -> subprocess.Popen[str]:
        """The command line in a process of its own, in an empty folder; it speaks to the tests' Prefect server."""
        place = self.folder / "elsewhere"
        place.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *map(str, words)],
            cwd=place,
            preexec_fn=_hear_ctrl_c,
            env={
                **os.environ,
                "FACTORY_HOME": str(self.home),
                "FACTORY_PREFECT_API_URL": self.api,
                **self.settings,
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> Said:
        out, err = process.communicate(timeout=300)
        return Said(process.returncode, out, err)

    # What is remembered ---------------------------------------------------------------------------------------------

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The ledger as the sqlite3 module reads it."""
        connection = sqlite3.connect(f"file:{self.home / 'ledger.db'}?mode=ro", uri=True, timeout=30)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def files(self, digest: str) -> dict[str, Path]:
        """The files of a stored object by name, after each was hashed and held against the manifest and the digest."""
        place = self.home / "store" / "sha256" / digest[:2] / digest
        manifest = (place / "manifest.json").read_bytes()
        assert hashlib.sha256(manifest).hexdigest() == digest
        found = {entry["path"]: place / "files" / entry["path"] for entry in json.loads(manifest)}
        for entry in json.loads(manifest):
            assert hashlib.sha256(found[entry["path"]].read_bytes()).hexdigest() == entry["sha256"]
        assert {path for path in (place / "files").rglob("*") if path.is_file()} == set(found.values())
        return found

    def mlflow(self) -> Any:
        from mlflow.tracking import MlflowClient

        uri = f"sqlite:///{self.home}/mlflow/mlflow.db"
        return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def remembered(self) -> dict[str, int]:
        """Rows of every table of the ledger; what a refusal must leave as it was."""
        if not (self.home / "ledger.db").exists():
            return {}
        tables = self.sql("SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'alembic_version'")
        return {name: self.sql(f"SELECT count(*) FROM {name}")[0][0] for (name,) in tables}

    def litter(self) -> list[str]:
        """What lies where only work in progress may lie; what was damaged and replaced is kept there for a look."""
        places = (self.home / "store" / "tmp", self.home / "scratch")
        found = [path for place in places if place.is_dir() for path in place.iterdir()]
        return sorted(str(path) for path in found if not path.name.startswith("damaged-"))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Prefect's own server on a free port, for whoever asks for it; its API's address."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    from infra.pools import GPU_LIMIT

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        with get_client(sync_client=True) as client:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=1))
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def desk(made_up_words: list[str]) -> dict[str, Task]:
    """Three tasks to write answers to, one to sort, and `moved`: topic with other key words and other labels."""
    words, fillers = made_up_words, made_up_words[32:]
    tasks = [
        Task("intent", words[0:4], words[8:12], fillers),
        Task("topic", words[4:8], words[12:16], fillers),
        Task("tone", words[16:20], words[20:24], fillers),
        Task("mood", words[0:4], words[8:12], fillers),
    ]
    moved = Task("topic", words[24:28], words[28:32], fillers)
    return {**{task.name: task for task in tasks}, "moved": moved}


@pytest.fixture(scope="session")
def new_factory(
    server: str, tiny_base: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Factory]:
    """Empty homes; MLflow's empty database is built once and copied, for that takes seconds."""
    import shutil

    from registry.mlflow_access import client

    template = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    client(f"sqlite:///{template}").search_experiments()

    def make() -> Factory:
        made = Factory(tmp_path_factory.mktemp("factory"), tiny_base, tiny_encoder, server)
        (made.home / "mlflow").mkdir(parents=True)
        shutil.copy(template, made.home / "mlflow" / "mlflow.db")
        return made

    return make


@pytest.fixture(scope="session")
def factory(new_factory: Callable[[], Factory]) -> Factory:
    """The home that the tests share."""
    return new_factory()


@contextmanager
def _at_its_word() -> Iterator[None]:
    """The second blessing given without a fresh process, which takes long: for where it is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.export.answer.answer_in_fresh_process", lambda _, asked, **__: ("yes",) * len(asked))
        yield


@dataclass(frozen=True)
class Heard:
    """What a real fresh process answered, kept beside the outcome that it was asked for."""

    outcome: Any
    answers: list[tuple[str, ...]]


@contextmanager
def _listening() -> Iterator[list[tuple[str, ...]]]:
    """Every answer of every fresh process, as it comes."""
    from tasks.export import answer

    heard: list[tuple[str, ...]] = []
    asked = answer.answer_in_fresh_process

    def asking(*arguments: Any, **named: Any) -> tuple[str, ...]:
        heard.append(asked(*arguments, **named))
        return heard[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.export.answer.answer_in_fresh_process", asking)
        yield heard


@pytest.fixture
def at_its_word() -> Iterator[None]:
    with _at_its_word():
        yield


@pytest.fixture(scope="session")
def intent(factory: Factory, desk: dict[str, Task]) -> Heard:
    """One spec trained by the flow, from the door to the champion, with nothing left out."""
    from flows.train import train

    with factory.active(), _listening() as answers:
        return Heard(train(str(factory.spec(desk["intent"]))), answers)


@pytest.fixture(scope="session")
def mood(factory: Factory, desk: dict[str, Task]) -> Heard:
    """A classifier on the tiny encoder, from the door to the champion."""
    from flows.train import train

    sorts = {"kind": "classification", "data__prompt": None, "data__completion": None}
    with factory.active(), _listening() as answers:
        return Heard(train(str(factory.spec(desk["mood"], base__model=str(factory.encoder), **sorts))), answers)


@pytest.fixture(scope="session")
def hasty(factory: Factory, desk: dict[str, Task], intent: Heard) -> tuple[Any, Any]:
    """Two versions of intent that learned nothing; they differ in their seed and are not served."""
    from flows.train import train

    one_step = {"training__steps": 1, "training__learning_rate": 1e-6}
    specs = [factory.spec(desk["intent"], f"hasty {seed}", seed=seed, **one_step) for seed in (3, 5)]
    with factory.active():
        first, second = (train(str(spec), promote=False).version for spec in specs)
    return first, second


@dataclass(frozen=True)
class Fleet:
    """What became of the specs: the refusal at the end, how often a base was loaded, the ledger before and after."""

    refused: BaseException
    loads: int
    before: dict[str, int]
    after: dict[str, int]


@pytest.fixture(scope="session")
def fleet(factory: Factory, desk: dict[str, Task], intent: Heard) -> Fleet:
    """intent again, topic and tone, and among them one whose rows are all the same; nothing is promoted."""
    import transformers

    from flows.fleet import fleet as flow
    from tasks.errors import DataRefused
    from tasks.training.base import _load_base

    alike = factory.rows("alike.jsonl", [{"text": "one row", "label": "again"}] * 90)
    specs = [factory.spec(desk[name]) for name in ("intent", "tone", "topic")]
    specs.insert(1, factory.spec(Task("stale", (), (), ()), data=alike))
    load, loads, before = transformers.AutoModelForCausalLM.from_pretrained, [], factory.remembered()
    _load_base.cache_clear()
    counted = lambda *a, **k: loads.append(a) or load(*a, **k)  # noqa: E731
    with factory.active(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", counted)
        with pytest.raises(DataRefused) as refused:
            flow([str(spec) for spec in specs], promote=False)
    return Fleet(refused.value, len(loads), before, factory.remembered())


@dataclass(frozen=True)
class Moved:
    """The quarter's traffic of topic and what came of it: finding and event, a plain retrain, one with replay."""

    traffic: Path
    watched: Any
    event: Mapping[str, Any]
    plain: Said
    meanwhile: Said
    replayed: Any
    taught: list[tuple[tuple[Any, ...], tuple[Any, ...]]]
    frozen: list[dict[str, str]]


@pytest.fixture(scope="session")
def moved(factory: Factory, desk: dict[str, Task], fleet: Fleet) -> Moved:
    """topic is served, its traffic moves, a plain retrain forgets, and one with replay takes its place; before that,
    somebody trains on the old rows as if nothing had happened.

    Some of the traffic repeats rows that are frozen for judging, with the very same answer; a retrain, which keeps
    fewer rows for judging, would learn from them by their hash.
    """
    import tasks.training.loop as loop
    from flows.retrain import retrain
    from flows.watch import watch

    def key(row: Mapping[str, str]) -> str:
        return hashlib.sha256(f"{row['text']} topic:".encode()).hexdigest()

    frozen = [row for row in desk["topic"].rows(ROWS, seed=0) if 0.3 <= int(key(row)[:13], 16) / 16**13 < 0.4][:12]
    rows = desk["moved"].rows(180, seed=5)
    traffic = factory.traffic("quarter.jsonl", [*rows[:100], *frozen, *rows[100:]])
    events: list[dict[str, Any]] = []
    taught: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []
    train_adapter = loop.train_adapter

    def taking_notes(base: Any, spec: Any, train: Sequence[Any], validation: Sequence[Any], *a: Any, **k: Any) -> Any:
        taught.append((tuple(train), tuple(validation)))
        return train_adapter(base, spec, train, validation, *a, **k)

    with pytest.MonkeyPatch.context() as patch, _at_its_word():
        patch.setattr("flows.watch.emit_event", lambda name, **event: events.append({"name": name, **event}))
        patch.setattr(loop, "train_adapter", taking_notes)
        assert factory.run("promote", "topic:1").code == 0
        with factory.active():
            (watched,) = watch("topic", str(traffic))
        plain = factory.run("--json", "retrain", "topic", "--traffic", traffic, "--replay-share=0", "--start=champion")
        late = factory.spec(desk["topic"], "topic late", training__steps=1, training__learning_rate=1e-6)
        meanwhile = factory.run("--quiet", "train", late)
        with factory.active():
            replayed = retrain("topic", finding=dict(events[0]["payload"]))
    return Moved(traffic, watched, events[0], plain, meanwhile, replayed, taught, frozen)
