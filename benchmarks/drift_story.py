"""A task lives through periods of real data: five ways to keep its adapter, with the real flows, ledger and MLflow.

    FACTORY_DATA=... FACTORY_MINILM=... .venv/bin/python benchmarks/drift_story.py [STORY.yml ...] [--seeds 1]

A story is a spec: a file, the column that orders it, where each period begins, and what an adapter is. Of every period
three rows in ten are held out and only judge; the others come as labelled traffic. The adapter is trained on the first
period and lives on the others:

    never      the first adapter stays
    schedule   a retrain with replay after every period, promoted by its gates
    naive      the champion trained on with the new rows alone after every period, and served whatever it lost
    ours       `watch` judges, and only its event causes a retrain
    oracle     a fresh adapter on all labels of all periods so far

Ends with one line of JSON over all stories and seeds: `gap_to_oracle_points` (oracle - ours on the period's own
held-out rows), `forgotten_points` (first champion - ours on the first period's), `retrains_share_of_schedule`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

HERE = Path(__file__).parent
ARMS = ("never", "schedule", "naive", "ours", "oracle")
Row = dict[str, str]


@dataclass(frozen=True)
class Period:
    """Rows that come as traffic, and rows that only judge."""

    name: str
    traffic: tuple[Row, ...]
    held_out: tuple[Row, ...]


@dataclass
class Life:
    """What one arm came to: scores on each later period's held-out rows and on the first one's, and what it cost."""

    new: list[float] = field(default_factory=list)
    old: list[float] = field(default_factory=list)
    retrains: int = 0
    labels: int = 0
    minutes: float = 0.0


def periods_of(story: dict[str, Any], data: Path) -> list[Period]:
    text, label = story["adapter"]["data"]["text"], story["adapter"]["data"]["label"]
    with (data / story["data"]).open(encoding="utf-8", newline="") as file:
        rows = list({row[text]: row for row in csv.DictReader(file)}.values())
    counts = Counter(row[label] for row in rows)
    rows = [row for row in rows if counts[row[label]] >= story.get("min_class_rows", 1)]
    begins = story["periods"]
    made: list[Period] = []
    for place, begin in enumerate(begins):
        end = begins[place + 1] if place + 1 < len(begins) else "\uffff"
        mine = [{text: row[text], label: row[label]} for row in rows if begin <= row[story["column"]] < end]
        out = [int(hashlib.sha256(row[text].encode()).hexdigest()[:8], 16) % 10 < 3 for row in mine]
        made.append(
            Period(
                begin,
                tuple(row for row, held in zip(mine, out, strict=True) if not held),
                tuple(row for row, held in zip(mine, out, strict=True) if held),
            )
        )
    return made


def lived(arm: str, story: dict[str, Any], periods: Sequence[Period], base: str, seed: int, folder: Path) -> Life:
    """One arm's life in a home of its own."""
    from flows.retrain import retrain
    from flows.traffic import traffic_add
    from flows.train import train
    from flows.watch import watch
    from flows.wiring import opened

    os.environ["FACTORY_HOME"] = str(folder / "home")
    task, life, began = story["name"], Life(), time.perf_counter()
    first = written(folder / "first.jsonl", task, periods[0].traffic)
    made = train(str(spec_file(folder / "spec.yaml", story, base, seed, first)))
    if not made.promoted:  # the story is about what follows: the first adapter is served, whatever it can do
        opened().ledger.promote(task, made.version.number, expected=None, decision={})
    life.labels = len(periods[0].traffic)
    events: list[dict[str, Any]] = []
    listen(events)
    for place, period in enumerate(periods[1:], 1):
        traffic = written(folder / f"{place}.jsonl", f"{task} {place}", period.traffic, 1 + place)
        ledger = opened().ledger
        if arm == "ours":
            events.clear()
            traffic_add(task, str(traffic))
            watch(task)
            if events:
                life.labels += len(period.traffic)
                retrain(task, str(traffic), finding=dict(events[0]["payload"]))
                life.retrains += 1
        elif arm in ("schedule", "naive"):
            life.labels += len(period.traffic)
            life.retrains += 1
            naive = arm == "naive"
            done = retrain(task, str(traffic), replay_share=0.0 if naive else None, promote=not naive)
            if naive:
                champion = ledger.champion(task)
                ledger.promote(task, done.version.number, expected=champion.number if champion else None, decision={})
        elif arm == "oracle":
            life.labels += len(period.traffic)
            life.retrains += 1
            known = [row for one in periods[: place + 1] for row in one.traffic]
            path = written(folder / f"all-{place}.jsonl", task, known)
            name = f"{task}-{place}"
            train(str(spec_file(folder / f"spec-{place}.yaml", {**story, "name": name}, base, seed, path)))
            task_now = name
        served = task_now if arm == "oracle" else task
        life.new.append(score(served, story, period.held_out))
        life.old.append(score(served, story, periods[0].held_out))
    life.minutes = (time.perf_counter() - began) / 60
    return life


def listen(events: list[dict[str, Any]]) -> None:
    """Drift events are kept instead of sent: the automation's part is played here."""
    import flows.watch

    flows.watch.emit_event = lambda name, **event: events.append({"name": name, **event})  # type: ignore[attr-defined]


def score(task: str, story: dict[str, Any], rows: Sequence[Row]) -> float:
    """The champion on held-out rows that it has never met."""
    from flows.learn import Slice
    from flows.retrain import scored_or_wrong
    from flows.wiring import opened
    from tasks.data.examples import example_of
    from tasks.specs import AdapterSpec

    home = opened()
    champion = home.ledger.champion(task) or home.ledger.version(task)
    spec = AdapterSpec.model_validate(champion.spec)
    where = Slice("held out", "0" * 64, "test", tuple(example_of(spec, row, place) for place, row in enumerate(rows)))
    return scored_or_wrong(spec, [where], home.store.path(champion.artifact), ())[where.name].score


def written(path: Path, name: str, rows: Sequence[Row], month: int = 1) -> Path:
    """Rows as traffic, one a minute, each period in a month of its own."""
    lines = [
        {
            "id": f"{name} {place}",
            "time": f"2026-{month:02}-{1 + place // 1440:02}T{place // 60 % 24:02}:{place % 60:02}:00Z",
        }
        | row
        for place, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def spec_file(path: Path, story: dict[str, Any], base: str, seed: int, data: Path) -> Path:
    adapter = json.loads(json.dumps(story["adapter"]))
    adapter |= {"task": story["name"], "base": {"model": base}, "seed": seed}
    adapter["data"] |= {"source": str(data), "split": {"validation": 0.1, "test": 0.25}}
    adapter.setdefault("resources", {"threads": 1})
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(adapter, file)
    return path


def told(name: str, lives: dict[str, list[Life]]) -> dict[str, float]:
    """The story's table, and its three figures."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    def spread(values: Sequence[float]) -> str:
        return f"{100 * mean(values):5.1f} [{100 * min(values):.1f}, {100 * max(values):.1f}]"

    print(f"\n{name}\n{'arm':10} {'score on new':>22} {'score on old, at the end':>26} retrains  labels  minutes")
    for arm, some in lives.items():
        new, old = [mean(life.new) for life in some], [life.old[-1] for life in some]
        cost = f"{mean([x.retrains for x in some]):8.1f} {mean([x.labels for x in some]):7.0f}"
        print(f"{arm:10} {spread(new):>22} {spread(old):>26} {cost} {mean([x.minutes for x in some]):8.1f}", flush=True)
    if set(ARMS) - set(lives):
        return {}
    gap = mean([mean(a.new) - mean(b.new) for a, b in zip(lives["oracle"], lives["ours"], strict=True)])
    forgot = mean([a.old[-1] - b.old[-1] for a, b in zip(lives["never"], lives["ours"], strict=True)])
    share = sum(x.retrains for x in lives["ours"]) / sum(x.retrains for x in lives["schedule"])
    return {"gap": 100 * gap, "forgot": 100 * forgot, "share": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stories", nargs="*", type=Path, default=sorted((HERE / "stories").glob("*.yml")))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    asked = parser.parse_args()
    if "FACTORY_DATA" not in os.environ or "FACTORY_MINILM" not in os.environ:
        sys.exit("export FACTORY_DATA and FACTORY_MINILM first; benchmarks/README.md says what they name")
    from flows.progress import voice
    from infra.environment import export_environment
    from infra.settings import load_settings

    voice.quiet = True
    data, base, figures = Path(os.environ["FACTORY_DATA"]), os.environ["FACTORY_MINILM"], []
    with tempfile.TemporaryDirectory() as place:
        os.environ["FACTORY_HOME"] = f"{place}/prefect"
        settings = load_settings()
        export_environment(settings)
        settings.prefect_home.mkdir(parents=True, exist_ok=True)
        for path in asked.stories:
            story = YAML(typ="safe").load(path)
            periods = periods_of(story, data)
            sizes = ", ".join(f"{p.name}: {len(p.traffic)} + {len(p.held_out)} held out" for p in periods)
            print(f"{story['name']}: {sizes}", flush=True)
            lives: dict[str, list[Life]] = {arm: [] for arm in asked.arms}
            for seed in range(asked.seeds):
                for arm in asked.arms:
                    folder = Path(place) / story["name"] / f"{arm}-{seed}"
                    folder.mkdir(parents=True)
                    lives[arm].append(lived(arm, story, periods, base, seed, folder))
                    life = lives[arm][-1]
                    print(f"  {arm}, seed {seed}: {json.dumps(vars(life))}", flush=True)
            figures.append(told(story["name"], lives))
    known = [one for one in figures if one]
    if known:
        names = {"gap": "gap_to_oracle_points", "forgot": "forgotten_points", "share": "retrains_share_of_schedule"}
        print(json.dumps({names[k]: round(sum(f[k] for f in known) / len(known), 3) for k in names}))


if __name__ == "__main__":
    main()
