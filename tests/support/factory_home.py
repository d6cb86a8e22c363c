"""A factory in a temporary home as the tests of flows see it: its specs, its commands, and witnesses of its own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
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


def fresh_slots() -> None:
    """One GPU slot, and free: what was killed holds its own until its lease ends, a minute later."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectNotFound

    from infra.pools import GPU_LIMIT

    with get_client(sync_client=True) as client:
        with suppress(ObjectNotFound):
            client.delete_global_concurrency_limit_by_name(GPU_LIMIT)
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=1))


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
        if process.returncode == -signal.SIGKILL:
            fresh_slots()
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

    def base_as_the_adapters_saw_it(self) -> Any:
        """The base in float32, each linear layer of its body through NF4 and back, by bitsandbytes alone."""
        import torch
        import transformers
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        model = transformers.AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                packed, state = quantize_4bit(
                    module.weight.data, blocksize=64, compress_statistics=True, quant_type="nf4"
                )
                module.weight.data = dequantize_4bit(packed, state)
        return model
