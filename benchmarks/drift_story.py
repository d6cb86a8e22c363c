"""A task lives through periods of real data: five ways to keep its adapter, with the real flows, ledger and MLflow.

    FACTORY_DATA=... FACTORY_MINILM=... .venv/bin/python benchmarks/drift_story.py [STORY.yml ...] [--seeds 3]

A story is a spec (`benchmarks/stories/`, read by `story_periods.py`). The first adapter is trained on the first period
and lives on the others. A share of each period's rows comes with its labels; three rows in ten are held out, never come
and only judge. The same first adapter lives five lives:

    never      it stays
    schedule   all labels are bought and a retrain runs after every period, one candidate each, promoted by its gates
    naive      the same, on the new labels alone, and served whatever it lost
    ours       `watch` judges; where it asks for labels or for a retrain, the period's other labels are bought, and only
               its event causes a retrain, or a person whom it told that the same inputs have other labels now
    oracle     a fresh adapter on all labels of all periods so far

Every life is kept in --cache, so a run that was cut goes on; `--arms` without a name only tells what is there. Ends
with one line of JSON over all stories and seeds: `gap_to_oracle_points` (oracle - ours on the periods' own held-out
rows), `forgotten_points` (first champion - ours on the first period's, at the end), `retrains_share_of_schedule`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from story_periods import Period, Row, base_of, periods_of, still_true

HERE = Path(__file__).parent
ARMS = ("never", "schedule", "naive", "ours", "oracle")


@dataclass
class Life:
    """What one arm came to: scores on each later period's held-out rows and on the first one's, and what it cost.

    `labels` counts those that were bought, `minutes` are those of the flows alone. `told` is what `watch` said.
    """

    new: list[float] = field(default_factory=list)
    old: list[float] = field(default_factory=list)
    retrains: int = 0
    promoted: int = 0
    labels: int = 0
    minutes: float = 0.0
    told: list[str] = field(default_factory=list)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.minutes += (time.perf_counter() - began) / 60


@dataclass(frozen=True)
class Stage:
    """Where a story is told: every life has a home of its own, a copy of the one that the first adapter was made in."""

    story: Mapping[str, Any]
    periods: Sequence[Period]
    seed: int
    folder: Path

    @property
    def task(self) -> str:
        return str(self.story["name"])

    def begin(self, arm: str) -> None:
        """A home in which the first adapter was just served; it is trained if that has not happened yet."""
        from flows.train import train
        from flows.wiring import opened

        first, home = self.folder / "first", self.folder / arm
        if not (self.folder / "served").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            os.environ["FACTORY_HOME"] = str(first)
            path = self.written("first", self.periods[0].traffic)
            made = train(str(self.spec(self.task, path)))
            if not made.promoted:  # the story is about what follows: the first adapter is served, whatever it can do
                opened().ledger.promote(self.task, made.version.number, expected=None, decision={})
            (self.folder / "served").touch()
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(first, home)
        os.environ["FACTORY_HOME"] = str(home)

    def spec(self, name: str, data: Path) -> Path:
        """The story's adapter as a spec file over some rows."""
        adapter = json.loads(json.dumps(self.story["adapter"]))
        adapter |= {"task": name, "seed": self.seed}
        adapter["base"] = base_of(self.story)
        adapter["data"] = {"split": {"validation": 0.1, "test": 0.25}, **adapter["data"], "source": str(data)}
        adapter.setdefault("resources", {"threads": 1})
        path = self.folder / f"{name}.yaml"
        with path.open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(adapter, file)
        return path

    def written(self, name: str, rows: Sequence[Row], month: int = 1) -> Path:
        """Rows as traffic, one a minute, each period in a month of its own."""
        path = self.folder / f"{name}.jsonl"
        lines = [
            {"id": f"{month} {n}", "time": f"2026-{month:02}-{1 + n // 1440:02}T{n // 60 % 24:02}:{n % 60:02}:00Z", **r}
            for n, r in enumerate(rows)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    def arrive(self, place: int, labelled: int) -> None:
        """A period's requests into the store, with the labels of the first `labelled` of them."""
        from flows.traffic import traffic_add

        truth = truth_of(self.story)
        rows = [
            row if n < labelled else {k: v for k, v in row.items() if k not in truth}
            for n, row in enumerate(self.periods[place].traffic)
        ]
        traffic_add(self.task, str(self.written(f"{place} {labelled}", rows, 1 + place)))


def lived(arm: str, stage: Stage) -> Life:
    """One arm's life."""
    stage.begin(arm)
    life, served = Life(labels=len(stage.periods[0].traffic)), stage.task
    for place, period in enumerate(stage.periods[1:], 1):
        with life.at_work():
            served = LIVES[arm](stage, place, life)
        life.new.append(score(served, stage.story, period.held_out))
        life.old.append(score(served, stage.story, still_true(stage.periods)))
    return life


def stays(stage: Stage, place: int, life: Life) -> str:
    return stage.task


def retrained(stage: Stage, life: Life, **how: Any) -> Any:
    """What came of a retrain; None where its curve was refused or its rows were too few, and nothing was registered."""
    from flows.retrain import retrain
    from tasks.errors import DataRefused, GateRefused

    life.retrains += 1
    try:
        done = retrain(stage.task, **how)
    except (DataRefused, GateRefused) as refused:
        life.told.append(str(refused))
        return None
    life.promoted += done.promoted
    return done


def on_schedule(stage: Stage, place: int, life: Life) -> str:
    from tasks.specs import RetrainSpec

    life.labels += len(stage.periods[place].traffic)
    stage.arrive(place, len(stage.periods[place].traffic))
    retrained(stage, life, replay_share=RetrainSpec().replay_share)  # a recipe that is named is tried once
    return stage.task


def naively(stage: Stage, place: int, life: Life) -> str:
    from flows.wiring import opened

    ledger, rows = opened().ledger, stage.periods[place].traffic
    life.labels += len(rows)
    path = stage.written(f"naive {place}", rows, 1 + place)
    done = retrained(stage, life, traffic=str(path), replay_share=0.0, promote=False)
    champion = ledger.champion(stage.task)
    if done is not None:
        ledger.promote(stage.task, done.version.number, expected=champion.number if champion else None, decision={})
    return stage.task


def by_verdict(stage: Stage, place: int, life: Life) -> str:
    """Some labels come by themselves; the rest are bought where they are asked for, or needed for a retrain."""
    from flows.watch import watch

    rows = stage.periods[place].traffic
    known = min(len(rows), max(60, round(stage.story.get("labelled", 0.5) * len(rows))))
    life.labels += known
    stage.arrive(place, known)
    with listening() as events:
        (seen,) = watch(stage.task)
        life.told.append(seen.report.sentence)
        asked = seen.report.action == "ask for labels"
        if (asked or events) and known < len(rows):
            life.labels += len(rows) - known
            stage.arrive(place, len(rows))
        if asked and not events:
            (seen,) = watch(stage.task)
            life.told.append(seen.report.sentence)
    if events:
        retrained(stage, life, finding=dict(events[0]["payload"]))
    elif seen.report.verdict == "concept shift":  # a person looks, and says since when
        life.labels += len(rows) - known
        stage.arrive(place, len(rows))
        retrained(stage, life, labels_changed=f"2026-{1 + place:02}-01")
    return stage.task


def knowingly(stage: Stage, place: int, life: Life) -> str:
    from flows.train import train

    rows = stage.periods[place].as_now([row for one in stage.periods[: place + 1] for row in one.coming])
    life.labels += len(stage.periods[place].traffic)
    name = f"{stage.task}-{place}"
    train(str(stage.spec(name, stage.written(f"all {place}", rows))))
    life.retrains += 1
    return name


LIVES = dict(zip(ARMS, (stays, on_schedule, naively, by_verdict, knowingly), strict=True))


@contextmanager
def listening() -> Iterator[list[dict[str, Any]]]:
    """Drift events are kept instead of sent: the automation's part is played here."""
    import flows.watch as watch

    events: list[dict[str, Any]] = []
    emit, watch.emit_event = watch.emit_event, lambda name, **event: events.append({"name": name, **event})  # type: ignore[assignment]
    try:
        yield events
    finally:
        watch.emit_event = emit


def truth_of(story: Mapping[str, Any]) -> set[str]:
    """The columns that hold the answer."""
    from tasks.data.examples import target_columns
    from tasks.specs import AdapterSpec

    adapter = {**story["adapter"], "task": "story", "base": {**story["adapter"].get("base", {}), "model": "none"}}
    return set(target_columns(AdapterSpec.model_validate({**adapter, "data": {**adapter["data"], "source": "none"}})))


def score(task: str, story: Mapping[str, Any], rows: Sequence[Row]) -> float:
    """The served version on held-out rows that it has never met."""
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


def remembered(cache: Path, arm: str, stage: Stage, *, asked: bool) -> Life | None:
    """A life from the cache; else lived now and kept there, if it was asked for."""
    named = hashlib.sha256(json.dumps([stage.story, stage.seed, arm], sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"{stage.task}-{stage.seed}-{arm}-{named}.json"
    if not path.is_file():
        if not asked:
            return None
        text = json.dumps(asdict(lived(arm, stage)))
        path.write_text(text, encoding="utf-8")
    life = Life(**json.loads(path.read_text(encoding="utf-8")))
    print(f"  {arm}, seed {stage.seed}: {json.dumps(asdict(life))}", flush=True)
    return life


def told(name: str, lives: Mapping[str, Mapping[int, Life]], rows: tuple[int, int]) -> dict[str, float]:
    """The story's table, and its three figures, each over the seeds of which both lives are known.

    Intervals go from the lowest to the highest seed; where there is one, they are Wilson's (95 %) over the held-out
    `rows` (of the new, of the old).
    """
    from tasks.drift.statistics import wilson

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    def spread(values: Sequence[float], count: int) -> str:
        low, high = (min(values), max(values)) if len(values) > 1 else wilson(values[0], count, 0.975)
        return f"{100 * mean(values):5.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    title = f"{'arm':10} {'seeds':>5} {'score on new':>22} {'score on old, at the end':>26}"
    print(f"\n{name}\n{title} retrains promoted  labels  minutes")
    for arm, of_seed in ((arm, of_seed) for arm, of_seed in lives.items() if of_seed):
        some = list(of_seed.values())
        new, old = [mean(life.new) for life in some], [life.old[-1] for life in some]
        counts = f"{mean([x.retrains for x in some]):8.1f} {mean([x.promoted for x in some]):8.1f}"
        cost = f"{mean([x.labels for x in some]):7.0f} {mean([x.minutes for x in some]):8.1f}"
        scores = f"{spread(new, rows[0]):>22} {spread(old, rows[1]):>26}"
        print(f"{arm:10} {len(some):5} {scores} {counts} {cost}", flush=True)

    def beside(arm: str) -> list[tuple[Life, Life]]:
        return [(lives[arm][seed], ours) for seed, ours in lives["ours"].items() if seed in lives[arm]]

    figures = {
        "gap": [100 * (mean(oracle.new) - mean(ours.new)) for oracle, ours in beside("oracle")],
        "forgot": [100 * (never.old[-1] - ours.old[-1]) for never, ours in beside("never")],
        "share": [ours.retrains / len(ours.new) for ours in lives["ours"].values()],  # the schedule's: one a period
    }
    return {name: mean(some) for name, some in figures.items() if some}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stories", nargs="*", type=Path, default=sorted((HERE / "stories").glob("*.yml")))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=ARMS, help="lives to live; others are only recalled")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "adapter-factory" / "stories")
    parser.add_argument("--loud", action="store_true", help="what the flows say, too")
    asked = parser.parse_args()
    if "FACTORY_DATA" not in os.environ or "FACTORY_MINILM" not in os.environ:
        sys.exit("export FACTORY_DATA and FACTORY_MINILM first; benchmarks/README.md says what they name")
    from flows.progress import voice
    from infra.environment import export_environment
    from infra.settings import load_settings

    voice.quiet = not asked.loud
    asked.cache.mkdir(parents=True, exist_ok=True)
    os.environ["FACTORY_HOME"] = str(asked.cache / "prefect")
    settings = load_settings()
    export_environment(settings)
    settings.prefect_home.mkdir(parents=True, exist_ok=True)
    stories = [YAML(typ="safe").load(path) for path in asked.stories]
    lives: dict[str, dict[str, dict[int, Life]]] = {one["name"]: {arm: {} for arm in ARMS} for one in stories}
    judging: dict[str, tuple[int, int]] = {}
    for seed in range(asked.seeds):
        for story in stories:
            periods = periods_of(story, Path(os.environ["FACTORY_DATA"]), seed)
            sizes = ", ".join(f"{p.name}: {len(p.traffic)} + {len(p.held_out)} held out" for p in periods)
            print(f"{story['name']}, seed {seed}: {sizes}", flush=True)
            judging[story["name"]] = sum(len(p.held_out) for p in periods[1:]), len(still_true(periods))
            stage = Stage(story, periods, seed, asked.cache / "stage" / f"{story['name']}-{seed}")
            for arm in ARMS:
                if life := remembered(asked.cache, arm, stage, asked=arm in asked.arms):
                    lives[story["name"]][arm][seed] = life
            shutil.rmtree(stage.folder, ignore_errors=True)
    figures = [told(name, some, judging[name]) for name, some in lives.items()]
    names = {"gap": "gap_to_oracle_points", "forgot": "forgotten_points", "share": "retrains_share_of_schedule"}
    known = {name: [one[key] for one in figures if key in one] for key, name in names.items()}
    print(json.dumps({name: round(sum(some) / len(some), 3) for name, some in known.items() if some}))


if __name__ == "__main__":
    main()
