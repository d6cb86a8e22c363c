"""The tasks of `real_merges.py`: public data cut into rows that train, choose and judge, and one adapter per task.

Six classification tasks on a sentence encoder, three generation tasks on a causal model of 260,032 parameters. No row
is on two sides; validation rows choose settings, test rows are scored once. CLINC150 is CC BY 3.0, Banking77 CC BY 4.0,
RustSec CC0 1.0, E2E NLG CC BY-SA 4.0, SCAN BSD.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tasks.data.examples import Example, key_of
from tasks.evaluation.scoring import Scores
from tasks.specs import AdapterSpec
from tasks.training.base import Base, load_base
from tasks.training.loop import train_adapter

ROWS = {"train": 2500, "validation": 300, "test": 1000}
SIDES = tuple(ROWS)
Pair = tuple[str, str, str]  # input, target, side ("" where the source names none)


@dataclass(frozen=True)
class Task:
    """A task with its rows by side, and the spec that its adapter is trained by."""

    name: str
    spec: AdapterSpec
    rows: dict[str, tuple[Example, ...]]

    @property
    def base(self) -> Base:
        return load_base(self.spec.base, kind=self.spec.kind, labels=self.spec.data.labels, device="cpu")


def tasks_of(kind: str, names: Collection[str] = ()) -> list[Task]:
    """The tasks of a kind (all, or those named), read from the folders that FACTORY_DATA and FACTORY_MINILM name."""
    known = CLASSIFICATION if kind == "classification" else GENERATION
    return [task(name, kind, *made) for name, made in known.items() if not names or name in names]


def task(name: str, kind: str, pairs: Callable[[], Iterable[Pair]], settings: dict[str, object]) -> Task:
    sides = sided(pairs())
    spec = {
        "task": name,
        "kind": kind,
        "base": {"quantization": "none", "compute_dtype": "float32"},
        "data": {"source": "-"},
    }
    if kind == "classification":
        labels = sorted({row.target for rows in sides.values() for row in rows})
        spec["base"]["model"] = os.environ["FACTORY_MINILM"]
        spec["data"] |= {"labels": labels, "max_tokens": 128}
        spec |= {
            "method": {"rank": 8},
            "training": {"epochs": 3, "learning_rate": 1e-3, "batch_size": 32, "validations": 4},
        }
    else:
        spec["base"]["model"] = str(data("stories260K"))
        spec["data"] |= {"prompt": "{input}", "completion": "{target}", "max_tokens": 512}
        spec |= {
            "method": {"rank": 8},
            "training": {"steps": 400, "learning_rate": 5e-3, "batch_size": 16, "validations": 4},
        }
    return Task(name, AdapterSpec.model_validate({**spec, **settings}), sides)


def sided(pairs: Iterable[Pair]) -> dict[str, tuple[Example, ...]]:
    """Rows by side: as the source says where it has validation rows, else by hash of the input; each input once."""
    sides: dict[str, dict[str, Example]] = {side: {} for side in SIDES}
    rows = list(pairs)
    has_validation = any(side in ("valid", "validation") for _, _, side in rows)
    for place, (text, target, said) in enumerate(sorted(rows, key=lambda row: (key_of(row[0]), row))):
        key = key_of(text)
        draw = int(hashlib.sha256(f"side {key}".encode()).hexdigest()[:8], 16) / 2**32
        side = "test" if said == "test" or (not said and draw < 0.25) else "train"
        if side == "train":
            held_out = said in ("valid", "validation") if has_validation else draw > 0.85
            side = "validation" if held_out else "train"
        if not any(key in found for found in sides.values()):
            sides[side][key] = Example(key, text, target, place)
    return {side: tuple(list(found.values())[: ROWS[side]]) for side, found in sides.items()}


def clinc_group(number: int) -> Iterable[Pair]:
    """A third of the 150 intents, across all domains."""
    rows = clinc()
    names = sorted({row["label"] for row in rows})[number::3]
    return [(row["text"], row["label"], row["split"]) for row in rows if row["label"] in names]


def banking() -> Iterable[Pair]:
    return [(row["text"], row["label"], row["split"]) for row in table("banking77/data.csv")]


def rustsec() -> Iterable[Pair]:
    """Titles of advisories by category; categories with fewer than 20 advisories are left out."""
    rows = table("rustsec_advisories/data.csv")
    many = {label for label, count in Counter(row["label"] for row in rows).items() if count >= 20}
    return [(row["text"], row["label"], "") for row in rows if row["label"] in many]


def attribute(name: str) -> Iterable[Pair]:
    """What a description of a restaurant says of one attribute, "none" if nothing."""
    for row in lines("e2e_nlg/data.jsonl"):
        facts = dict(re.findall(r"(\w[\w ]*)\[([^\]]*)\]", row["input"]))
        yield row["target"], facts.get(name, "none"), row["split"]


def e2e() -> Iterable[Pair]:
    return [(f"{row['input'].lower()}\n", row["target"].lower(), row["split"]) for row in lines("e2e_nlg/data.jsonl")]


def scan() -> Iterable[Pair]:
    rows = (row for row in lines("scan/data.jsonl") if row["domain"] == "simple")
    return [(f"{row['input']} ->", " " + row["target"].lower().replace("_", " "), row["split"]) for row in rows]


def domain() -> Iterable[Pair]:
    """The domain of a request, in words."""
    rows = (row for row in clinc() if row["domain"] != "oos")
    return [(f"{row['text']} =", " " + row["domain"].replace("_", " "), row["split"]) for row in rows]


def data(name: str) -> Path:
    return Path(os.environ["FACTORY_DATA"]) / name


@cache
def clinc() -> tuple[dict[str, str], ...]:
    return tuple(row for row in table("clinc150/data.csv") if row["label"] != "oos")


def table(name: str) -> list[dict[str, str]]:
    with data(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in data(name).read_text(encoding="utf-8").splitlines()]


CLASSIFICATION: dict[str, tuple[Callable[[], Iterable[Pair]], dict[str, object]]] = {
    "clinc-a": (lambda: clinc_group(0), {}),
    "clinc-b": (lambda: clinc_group(1), {}),
    "banking77": (banking, {}),
    "rustsec": (rustsec, {}),
    "e2e-price": (lambda: attribute("priceRange"), {}),
    "e2e-rating": (lambda: attribute("customer rating"), {}),
}
GENERATION: dict[str, tuple[Callable[[], Iterable[Pair]], dict[str, object]]] = {
    "e2e": (e2e, {"evaluation": {"metric": "token_accuracy"}}),
    "scan": (scan, {"evaluation": {"metric": "token_accuracy"}}),
    "domain": (domain, {"evaluation": {"metric": "exact_match"}}),
}


def remembered(folder: Path, name: str, measure: Callable[[], Scores]) -> Scores:
    """Scores from the cache folder, or measured and put there: an interrupted run goes on where it was."""
    path = folder / "scores" / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"
    if not path.is_file():
        found = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".new")
        staged.write_text(json.dumps([found.metric, found.keys, found.outcomes]))
        staged.replace(path)
    metric, keys, outcomes = json.loads(path.read_text())
    return Scores(metric, tuple(keys), tuple(outcomes))


def trained(task: Task, folder: Path) -> Path:
    """The task's adapter, from the cache folder if it was trained there before by the same spec and rows."""
    said = task.spec.model_dump_json(exclude_defaults=True) + "".join(row.key for row in task.rows["train"])
    target = folder / f"{task.name}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    if not (target / "adapter_model.safetensors").is_file():
        began = time.monotonic()
        done = train_adapter(task.base, task.spec, task.rows["train"], task.rows["validation"], target)
        looks = ", ".join(f"{look.loss:.3f}" for look in done.curve.looks)
        print(f"trained {task.name} in {time.monotonic() - began:.0f} s; validation loss {looks}", flush=True)
    return target
