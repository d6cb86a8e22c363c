"""A million rows through the door: how fast by stage, in how much memory, and which planted leaks it finds.

Rows of 200 characters of made-up words; among the rows that are learned from, some say again what a test row says, in
other case and spacing (exact leaks) or with one word changed (near leaks). The set is validated as `factory validate`
does it, into a store and a ledger of its own, and once more, unchanged. Beside it: pandas and Great Expectations alone.
Each part runs in a process of its own, whose peak is measured. Wall time is that of this machine and whatever else runs
on it; processor time is our own.

python benchmarks/data_door.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHARACTERS = 200
TEST_EVERY = 10
NEAR = 0.8


def write_rows(path: Path, count: int, seed: int = 0) -> dict[str, list[int]]:
    """Rows as JSONL, and the lines (from 1) of the planted exact and near leaks: one row in 500 each, at most 1,000."""
    draw = random.Random(seed)
    letters = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(draw.choices(letters, k=draw.randint(1, 4))) for _ in range(20_000)]
    labels = ("card", "fee", "loan", "rate")
    planted = min(1000, count // 500)
    tests: list[tuple[str, str]] = []
    lines: dict[str, list[int]] = {"exact": [], "near": []}
    with path.open("w", encoding="utf-8") as file:
        for at in range(count):
            label, side = labels[at % 4], "train" if at % TEST_EVERY else "test"
            left = count - at
            if (
                left <= 2 * planted * TEST_EVERY // (TEST_EVERY - 1) + 2
                and side == "train"
                and len(lines["near"]) < planted
            ):
                kind = "exact" if len(lines["exact"]) < planted else "near"
                text, label = tests[draw.randrange(len(tests))]
                text = "  ".join(text.upper().split(" ", 1)) if kind == "exact" else _changed(text, words, draw)
                lines[kind].append(at + 1)
            else:
                text = ""
                while len(text) < CHARACTERS:
                    text += (" " if text else "") + draw.choice(words)
                text = text[:CHARACTERS].strip()
                if side == "test":
                    tests.append((text, label))
            file.write(json.dumps({"text": text, "label": label, "split": side}) + "\n")
    return lines


def _changed(text: str, words: list[str], draw: random.Random) -> str:
    parts = text.split(" ")
    place = draw.randrange(len(parts))
    parts[place] = draw.choice([word for word in draw.choices(words, k=4) if word != parts[place]])
    return " ".join(parts)


def through_the_door(path: Path) -> dict[str, Any]:
    """Seconds and processor seconds by stage, what was kept out, and how long the same question takes again."""
    sys.path.insert(0, str(ROOT))
    from flows.validate import validated
    from flows.wiring import opened
    from tasks.data.validation import great_expectations
    from tasks.specs import AdapterSpec, BaseSpec, DataSpec, NearSpec, SplitSpec

    home = opened()
    great_expectations()  # its import is not counted, neither here nor below
    marks: list[tuple[str, float, float]] = []

    def stopwatch(stage: str, done: int, total: int) -> None:
        if not marks or marks[-1][0] != stage:
            marks.append((stage, time.perf_counter(), time.process_time()))

    data = DataSpec(
        source=str(path),
        split=SplitSpec(column="split", validation=0),
        near=NearSpec(similarity=NEAR, leaks="quarantine"),
    )
    spec = AdapterSpec(task="door", kind="classification", base=BaseSpec(model="/none"), data=data)
    began, began_cpu = time.perf_counter(), time.process_time()
    found = validated.fn(home, spec, based=False, on_progress=stopwatch)
    ended, ended_cpu = time.perf_counter(), time.process_time()
    bounds = [*marks, ("end", ended, ended_cpu)]
    stages = {name: (later[1] - start, later[2] - cpu) for (name, start, cpu), later in pairwise(bounds)}
    kept_out = [(bad.guard, bad.row) for bad in found.admission.quarantined] if found.admission else []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    again = time.perf_counter()
    same = validated.fn(home, spec, based=False)
    repeat = time.perf_counter() - again
    if same.digest != found.digest or same.admission is not None:
        raise SystemExit("the second look did not take the snapshot that was there")
    return {
        "seconds": ended - began,
        "cpu_seconds": ended_cpu - began_cpu,
        "stages": stages,
        "kept_out": kept_out,
        "peak_gib": peak,
        "repeat_seconds": repeat,
        "rows_in": found.record.rows_in,
    }


def great_expectations_alone(path: Path) -> dict[str, Any]:
    """pandas reads the file, Great Expectations checks the rules of the suite; no duplicates, leaks or snapshot."""
    sys.path.insert(0, str(ROOT))
    import pandas as pd

    from tasks.data.validation import great_expectations, implied_rules
    from tasks.specs import AdapterSpec, BaseSpec, DataSpec

    gx, gxe = great_expectations()
    spec = AdapterSpec(
        task="door", kind="classification", base=BaseSpec(model="/none"), data=DataSpec(source=str(path))
    )
    began, began_cpu = time.perf_counter(), time.process_time()
    frame = pd.read_json(path, lines=True, dtype=False)
    read = time.perf_counter() - began
    context = gx.get_context(mode="ephemeral")
    known = {kind.expectation_type: kind for name, kind in vars(gxe).items() if name.startswith("Expect")}
    rules = [known[name](**arguments) for name, arguments in implied_rules(spec)]
    batch = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
    outcome = (
        batch.add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": frame})
        .validate(gx.ExpectationSuite(name="door", expectations=rules))
    )
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - began_cpu,
        "read_seconds": read,
        "passed": bool(outcome.success),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


PARTS = {"door": through_the_door, "alone": great_expectations_alone}


def measured(part: str, path: Path, home: Path) -> dict[str, Any]:
    """One part in a process of its own."""
    quiet = {"FACTORY_HOME": str(home), "OMP_NUM_THREADS": "2", "GX_ANALYTICS_ENABLED": "False", "DO_NOT_TRACK": "true"}
    program = [sys.executable, __file__, "--part", part, "--path", str(path)]
    done = subprocess.run(program, env=os.environ | quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    ask = argparse.ArgumentParser(description="A million rows through the door.")
    ask.add_argument("--rows", type=int, default=1_000_000)
    ask.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    ask.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    asked = ask.parse_args()
    if asked.part:
        print(json.dumps(PARTS[asked.part](asked.path)))
        return
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small.jsonl"), Path(folder, "large.jsonl")
        write_rows(small, asked.rows // 10)
        planted = write_rows(large, asked.rows)
        tenth = measured("door", small, Path(folder, "home-small"))
        whole = measured("door", large, Path(folder, "home-large"))
        alone = measured("alone", large, Path(folder, "home-alone"))
    print(f"{'stage':16} {'seconds':>9} {'of processor':>13} {'rows/s':>10}")
    for name, (seconds, cpu) in whole["stages"].items():
        print(f"{name:16} {seconds:9.1f} {cpu:13.1f} {asked.rows / max(seconds, 1e-9):10,.0f}")
    print(f"{'all':16} {whole['seconds']:9.1f} {whole['cpu_seconds']:13.1f} {asked.rows / whole['seconds']:10,.0f}")
    beside = f"{alone['seconds']:9.1f} {alone['cpu_seconds']:13.1f} {asked.rows / alone['seconds']:10,.0f}"
    print(f"{'pandas + GX only':16} {beside}  (no duplicates, leaks, keys, snapshot; {alone['peak_gib']:.2f} GiB)")
    growth = whole["cpu_seconds"] / tenth["cpu_seconds"]
    print(f"ten times the rows take {growth:.1f} times the processor time")
    guards = {"exact": "one_side_per_input", "near": "no_near_leak"}
    accused = {kind: {row for guard, row in whole["kept_out"] if guard == name} for kind, name in guards.items()}
    recall = {kind: len(accused[kind] & {*planted[kind]}) / max(1, len(planted[kind])) for kind in guards}
    clean = len((accused["exact"] | accused["near"]) - {*planted["exact"]} - {*planted["near"]})
    print(f"{len(planted['exact'])} exact and {len(planted['near'])} near leaks planted; {clean} clean rows accused")
    print(
        json.dumps(
            {
                "rows_per_second": round(asked.rows / whole["seconds"]),
                "peak_gib": round(whole["peak_gib"], 2),
                "leak_recall_exact": recall["exact"],
                "leak_recall_near": recall["near"],
                "repeat_seconds": round(whole["repeat_seconds"], 2),
                "rows": asked.rows,
                "clean_accused": clean,
                "cpu_seconds": round(whole["cpu_seconds"], 1),
                "cpu_seconds_alone": round(alone["cpu_seconds"], 1),
                "cpu_growth_for_ten_times_the_rows": round(growth, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
