"""After a shift: which candidate learns the new and keeps the old? From the base or the champion, by replay and pull.

    FACTORY_DATA=... FACTORY_MINILM=... .venv/bin/python benchmarks/retrain_ways.py STORY.yml ... [--seeds 2]

Of each story (`stories/`) the first period teaches the champion. The period in which most moved (`--period`, 2 by
default) then teaches each candidate, with replayed rows of the first: as many as make up the share, in turn over the
labels; where labels were renamed, none of theirs. Scores are on held-out rows of both periods, those of the first that
still hold. No gate, no flow: this is about recipes. Ends with one line of JSON, story -> the way with the best mean.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from story_periods import Period, Row, base_of, periods_of, still_true

from tasks.data.examples import Example, example_of
from tasks.evaluation.scoring import score
from tasks.methods.build import attached
from tasks.specs import AdapterSpec
from tasks.training.base import cpu_threads, load_base
from tasks.training.loop import train_adapter


class Way(NamedTuple):
    """Where it starts, the share of replay (1: every row), the pull back to the champion, and the rate over the first
    training's."""

    start: str
    replay: float
    pull: float = 0.0
    rate: float = 1.0

    @property
    def name(self) -> str:
        some = "all" if self.replay == 1 else f"{self.replay:.0%}"
        more = [f"rate x {self.rate:g}"] * (self.rate != 1) + [f"pull {self.pull:g}"] * bool(self.pull)
        return ", ".join([f"from the {self.start}", f"{some} replay", *more])


WAYS = (
    Way("base", 0.0),
    Way("base", 0.5),
    Way("base", 1.0),
    Way("champion", 0.0),
    Way("champion", 0.0, pull=50.0),
    Way("champion", 0.25),
    Way("champion", 0.5, rate=0.5),
    Way("champion", 0.5),
    Way("champion", 1.0),
    Way("champion", 0.5, pull=50.0),
)


class Figures(NamedTuple):
    """Scores on the held-out rows of the new period and of the first one, and what the training took."""

    new: float
    old: float
    seconds: float


def spec_of(story: Mapping[str, Any], periods: Sequence[Period], way: Way, seed: int) -> AdapterSpec:
    labels = sorted({row[period.label] for period in periods for row in period.traffic})
    adapter = json.loads(json.dumps(story["adapter"]))
    adapter |= {"task": story["name"], "seed": seed}
    adapter["base"] = base_of(story)
    adapter["data"] |= {"source": "none", **({"labels": labels} if adapter["kind"] == "classification" else {})}
    adapter["retrain"] |= {"pull": way.pull, "rate_factor": way.rate}
    return AdapterSpec.model_validate(adapter)


def replayed(old: Sequence[Row], label: str, count: int) -> list[Row]:
    """Rows of every label in turn."""
    by_label: dict[str, list[Row]] = {}
    for row in old:
        by_label.setdefault(row[label], []).append(row)
    turns = chain.from_iterable(zip_longest(*(rows for _, rows in sorted(by_label.items()))))
    return [row for row in turns if row is not None][:count]


def tried(story: Mapping[str, Any], periods: Sequence[Period], seed: int) -> dict[str, Figures]:
    """The champion as it is, then every way."""
    first, moved = periods
    found: dict[str, Figures] = {}
    plain = spec_of(story, periods, Way("base", 0.0), seed)
    base = load_base(plain.base, kind=plain.kind, labels=plain.data.labels, device="cpu")

    def examples(rows: Sequence[Row]) -> list[Example]:
        return [example_of(plain, row, place) for place, row in enumerate(rows)]

    sides = [examples(moved.held_out), examples(still_true([first, moved]))]

    def judged(folder: Path, seconds: float) -> Figures:
        with attached(base, folder) as model:
            return Figures(*(score(base, model, rows, plain.metric).mean for rows in sides), seconds)

    with tempfile.TemporaryDirectory() as place, cpu_threads(1):
        champion = Path(place) / "champion"
        taught, choose = first.traffic[len(first.traffic) // 8 :], first.traffic[: len(first.traffic) // 8]
        train_adapter(base, plain, examples(taught), examples(choose), champion)
        found["the champion as it was"] = judged(champion, 0.0)
        holds = [row for row in taught if row[first.label] not in moved.renamed]
        fresh, chosen = moved.traffic[len(moved.traffic) // 8 :], moved.traffic[: len(moved.traffic) // 8]
        for number, way in enumerate(WAYS):
            wanted = round(len(fresh) * way.replay / (1 - way.replay)) if way.replay < 1 else len(holds)
            rows = [*fresh, *replayed(holds, first.label, wanted)]
            watched = [*chosen, *(choose if way.replay else [])]
            watched = [row for row in watched if row in chosen or row[first.label] not in moved.renamed]
            folder, began = Path(place) / str(number), time.perf_counter()
            start = champion if way.start == "champion" else None
            spec = spec_of(story, periods, way, seed)
            train_adapter(base, spec, examples(rows), examples(watched), folder, start=start)
            found[way.name] = judged(folder, time.perf_counter() - began)
            print(f"  seed {seed}, {way.name}: {found[way.name]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stories", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--period", type=int, default=2)
    asked = parser.parse_args()
    best = {}
    for path in asked.stories:
        story = YAML(typ="safe").load(path)
        seen: dict[str, list[Figures]] = {}
        for seed in range(asked.seeds):
            periods = periods_of(story, Path(os.environ["FACTORY_DATA"]), seed)
            for name, figures in tried(story, [periods[0], periods[asked.period]], seed).items():
                seen.setdefault(name, []).append(figures)
        print(f"\n{story['name']}\n{'':44} {'new':>7} {'old':>7} {'seconds':>8}")
        for name, some in seen.items():
            new, old, seconds = (sum(column) / len(some) for column in zip(*some, strict=True))
            print(f"{name:44} {100 * new:7.1f} {100 * old:7.1f} {seconds:8.1f}")
        ways = {name: sum(f.new + f.old for f in some) for name, some in seen.items() if name.startswith("from")}
        best[story["name"]] = max(ways, key=lambda name: ways[name])
    print(json.dumps(best))


if __name__ == "__main__":
    main()
