"""A real factory in a temporary home: tasks that a tiny random base learns in seconds, and witnesses to look into it.

What is expensive happens once, in stages: adapters are trained, one of them is moved by traffic and taught again. Each
file of tests works in a home of its own, a copy of the stages up to the last that it asks for and of nothing else: what
one file does there no other sees, in whatever order they run. Where several processes run the tests, one of them makes
a stage for all.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from factory_home import ROWS, Factory, Said, Task, fresh_slots
from shared_work import once_for_all


@pytest.fixture(scope="session")
def server(shared: Path) -> Iterator[str]:
    """Prefect's own server on a free port, for whoever asks for it; its API's address. The tables of its database,
    which take seconds, are made once and copied."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    # Prefect's threads end with this process; a child that a later test forks cannot end them, and would fail in trying
    os.register_at_fork(after_in_child=threading._threading_atexits.clear)  # type: ignore[attr-defined]
    folder = Path(tempfile.mkdtemp())
    with ExitStack() as stack:
        with once_for_all(shared / "prefect.db") as template:
            if known := template.exists():
                shutil.copy(template, folder / "prefect-test.db")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("prefect.testing.utilities.mkdtemp", lambda: str(folder))
                stack.enter_context(prefect_test_harness(server_startup_timeout=120))
            if not known:
                with closing(sqlite3.connect(folder / "prefect-test.db")) as made:
                    made.execute("VACUUM INTO ?", (str(template),))
        stack.enter_context(temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}))
        fresh_slots()
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
    server: str,
    tiny_base: Path,
    tiny_encoder: Path,
    mlflow_template: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], Factory]:
    """Empty homes."""

    def make() -> Factory:
        made = Factory(tmp_path_factory.mktemp("factory"), tiny_base, tiny_encoder, server)
        (made.home / "mlflow").mkdir(parents=True)
        shutil.copy(mlflow_template, made.home / "mlflow" / "mlflow.db")
        return made

    return make


@contextmanager
def _at_its_word() -> Iterator[None]:
    """The second blessing given without a fresh process, which takes long: for where it is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.export.answer.answer_in_fresh_process", lambda _, asked, **__: ("yes",) * len(asked))
        yield


@dataclass(frozen=True)
class Heard:
    """What a real fresh process answered and what Prefect shows, kept beside the outcome."""

    outcome: Any
    answers: list[tuple[str, ...]]
    shown: str


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


def _heard(factory: Factory, spec: Path) -> Heard:
    from prefect.artifacts import Artifact

    from flows.train import train

    with factory.active(), _listening() as answers:
        outcome = train(str(spec))
    shown = Artifact.get(str(outcome.version.ref).replace(":", "-"))
    return Heard(outcome, answers, str(shown and shown.data))


def _intent(factory: Factory, desk: dict[str, Task]) -> Heard:
    """One spec trained by the flow, from the door to the champion, with nothing left out, as a process's first run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.training.peak._STRETCHES", count())
        return _heard(factory, factory.spec(desk["intent"]))


def _mood(factory: Factory, desk: dict[str, Task]) -> Heard:
    """A classifier on the tiny encoder, from the door to the champion."""
    sorts = {"kind": "classification", "data__prompt": None, "data__completion": None}
    return _heard(factory, factory.spec(desk["mood"], base__model=str(factory.encoder), **sorts))


@dataclass(frozen=True)
class Fleet:
    """What became of the specs: the refusal at the end, how often a base was loaded, the ledger before and after."""

    refused: BaseException
    loads: int
    before: dict[str, int]
    after: dict[str, int]


def _fleet(factory: Factory, desk: dict[str, Task]) -> Fleet:
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


def _hasty(factory: Factory, desk: dict[str, Task]) -> tuple[Any, Any]:
    """Two versions of intent that learned nothing; they differ in their seed and are not served."""
    from flows.train import train

    one_step = {"training__steps": 1, "training__learning_rate": 1e-6}
    specs = [factory.spec(desk["intent"], f"hasty {seed}", seed=seed, **one_step) for seed in (3, 5)]
    with factory.active():
        first, second = (train(str(spec), promote=False).version for spec in specs)
    return first, second


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


def _moved(factory: Factory, desk: dict[str, Task]) -> Moved:
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


STAGES: Mapping[str, Callable[[Factory, dict[str, Task]], Any]] = {
    "intent": _intent,
    "mood": _mood,
    "fleet": _fleet,
    "hasty": _hasty,
    "moved": _moved,
}


@dataclass
class Stages:
    """The stages that were asked for so far: the home after each, and what its fixture gives."""

    new_factory: Callable[[], Factory]
    desk: dict[str, Task]
    shared: Path  # with the other processes that run the tests
    made: dict[str, tuple[Factory, Any]] = field(default_factory=dict)

    def home(self, asked: Collection[str]) -> Factory:
        """A home of its own after the last of the stages that are asked for; an empty one where none is."""
        last = max((list(STAGES).index(name) for name in asked if name in STAGES), default=-1)
        return self._copied(self._after(last)[0]) if last >= 0 else self.new_factory()

    def value(self, name: str) -> Any:
        return self._after(list(STAGES).index(name))[1]

    def _after(self, place: int) -> tuple[Factory, Any]:
        name = list(STAGES)[place]
        if name not in self.made:
            with once_for_all(self.shared / f"{name}.pickle") as kept:
                if not kept.exists():
                    factory = self._copied(self._after(place - 1)[0]) if place else self.new_factory()
                    kept.write_bytes(pickle.dumps((factory, STAGES[name](factory, self.desk))))
            self.made[name] = pickle.loads(kept.read_bytes())
        return self.made[name]

    def _copied(self, factory: Factory) -> Factory:
        """The same home at another place; MLflow's database, which writes down where files lie, is told."""
        empty = self.new_factory()
        copy = replace(factory, folder=empty.folder, api=empty.api, settings=dict(factory.settings))
        shutil.rmtree(copy.folder)
        shutil.copytree(factory.folder, copy.folder, ignore=shutil.ignore_patterns("*-shm"))
        with closing(sqlite3.connect(copy.home / "mlflow" / "mlflow.db")) as db, db:
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for _, column, kind, *_ in db.execute(f"PRAGMA table_info({table})").fetchall():
                    if kind.startswith(("VARCHAR", "TEXT")):
                        db.execute(
                            f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?)",
                            (str(factory.folder), str(copy.folder), str(factory.folder)),
                        )
        return copy


@pytest.fixture(scope="session")
def stages(new_factory: Callable[[], Factory], desk: dict[str, Task], shared: Path) -> Stages:
    return Stages(new_factory, desk, shared)


@pytest.fixture(scope="module")
def factory(request: pytest.FixtureRequest, stages: Stages) -> Factory:
    """The home of this file's tests, at the last stage that one of them asks for."""
    mine = [item for item in request.session.items if item.getparent(pytest.Module) is request.node]
    return stages.home({name for item in mine for name in getattr(item, "fixturenames", ())})


@pytest.fixture(scope="session")
def intent(stages: Stages) -> Heard:
    return stages.value("intent")  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def mood(stages: Stages) -> Heard:
    return stages.value("mood")  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def fleet(stages: Stages) -> Fleet:
    return stages.value("fleet")  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def hasty(stages: Stages) -> tuple[Any, Any]:
    return stages.value("hasty")  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def moved(stages: Stages) -> Moved:
    return stages.value("moved")  # type: ignore[no-any-return]
