"""What the door finds in public data sets: `FACTORY_DATA=/folder python benchmarks/real_data.py` prints one row a set.

Lengths are counted with the tokenizer of `stories260K`, which lies among the sets. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tasks.data.admission import Admission
from tasks.data.door import admit
from tasks.data.validation import great_expectations
from tasks.errors import DataRefused
from tasks.specs import AdapterSpec
from tasks.training.folder import count_tokens

CLASSES: dict[str, Any] = {"kind": "classification", "data": {"split": {"column": "split"}}}
SETS: dict[str, dict[str, Any]] = {
    "CLINC150": {"source": "clinc150/data.csv", **CLASSES},
    "Banking77": {"source": "banking77/data.csv", **CLASSES},
    "Banking77-OOS": {"source": "banking77_oos/data.csv", **CLASSES},
    "RustSec advisories": {"source": "rustsec_advisories/data.csv", "kind": "classification", "data": {}},
    "E2E NLG": {
        "source": "e2e_nlg/data.jsonl",
        "kind": "generation",
        "evaluation": {"metric": "token_accuracy"},
        "data": {"prompt": "{input}\n", "completion": "{target}", "split": {"column": "split"}},
    },
} | {
    f"SCAN {domain}": {
        "source": "scan/data.jsonl",
        "kind": "generation",
        "data": {
            "prompt": "{input} ->",
            "completion": " {target}",
            "where": {"domain": domain},
            "split": {"column": "split"},
        },
    }
    for domain in ("simple", "length", "addprim_jump")
}
NAMES = {
    "one_input_one_target": "same input with two answers",
    "one_side_per_input": "on two sides",
    "example_fits_max_tokens": "too long",
}


def looked_at(name: str, folder: Path) -> dict[str, Any]:
    """One set through the door, with the default thresholds and 512 tokens."""
    asked = SETS[name]
    spec = AdapterSpec.model_validate(
        {
            "task": "look",
            "kind": asked["kind"],
            "base": {"model": str(folder / "stories260K")},
            "evaluation": asked.get("evaluation", {}),
            "data": {"source": str(folder / asked["source"]), "max_tokens": 512, **asked["data"]},
        }
    )
    began = time.process_time()
    try:
        found = admit(spec, count_tokens=count_tokens(folder / "stories260K"))
    except DataRefused as refused:
        return {"set": name, "refused": [str(problem) for problem in refused.problems[:2]]}
    return {"set": name, **summary(found), "cpu_seconds": round(time.process_time() - began, 1)}


def summary(found: Admission) -> dict[str, Any]:
    """The figures of a row: where the rows went, and what the checks that failed found."""
    checks = {check.name: check for check in (*found.checks, *found.around.notices)}
    near = {kind: checks[f"no_near_{kind}"] for kind in ("leak", "repeat")}
    return {
        "rows": found.rows_in,
        "accepted": found.accepted,
        "deduplicated": found.deduplicated,
        "quarantined": dict(Counter(NAMES.get(bad.guard, bad.guard) for bad in found.quarantined)),
        "near_leaks": near["leak"].unexpected,
        "near_repeats": near["repeat"].unexpected,
        "longest_tokens": max(side["tokens"]["max"] for side in found.lengths.values()),
        "told": sorted(
            name
            for name, check in checks.items()
            if check.severity == "warning" and not check.passed and "near" not in name
        ),
    }


def main() -> int:
    if "FACTORY_DATA" not in os.environ:
        print("FACTORY_DATA names no folder of public data sets; benchmarks/README.md lists them", file=sys.stderr)
        return 0
    folder = Path(os.environ["FACTORY_DATA"]).absolute()
    great_expectations()
    rows = [looked_at(name, folder) for name in SETS if (folder / SETS[name]["source"]).exists()]
    print("| set | rows | accepted | kept out | deduplicated | near leaks | near repeats | longest | told |")
    print("|---|--:|--:|---|--:|--:|--:|--:|---|")
    for row in rows:
        if "refused" in row:
            print(f"| {row['set']} | refused: {row['refused'][0]} |")
            continue
        out = ", ".join(f"{count} {reason}" for reason, count in row["quarantined"].items()) or "none"
        told = ", ".join(name.replace("_", " ") for name in row["told"]) or "nothing"
        figures = [row[key] for key in ("deduplicated", "near_leaks", "near_repeats", "longest_tokens")]
        middle = " | ".join(f"{figure:,}" for figure in figures)
        print(f"| {row['set']} | {row['rows']:,} | {row['accepted']:,} | {out} | {middle} | {told} |")
    print(json.dumps({"sets": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
