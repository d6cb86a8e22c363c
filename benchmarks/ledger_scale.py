"""How fast the ledger answers when it is large: 10,000 versions, 100,000 evaluations, 50,000 edges on SQLite.

    python benchmarks/ledger_scale.py [--versions 10000] [--repeats 40] [--plans]

Each question is asked of many different subjects; `--plans` prints how SQLite goes about it. The last line is JSON: the
worst 95 % quantile in milliseconds, and each question's own; by the clock, and in processor time, which hardly depends
on what else the machine does. `first_ms` is a question that was not asked before.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import event, insert

from registry.evaluations import packed
from registry.ledger import Ledger
from registry.tables import (
    BaseRow,
    CodeRow,
    DatasetRow,
    EdgeRow,
    EvaluationRow,
    NameRow,
    PromotionRow,
    RowSetRow,
    SpecRow,
    VersionRow,
)

NAMES, BASES, DATASETS, EVALUATIONS_EACH, MERGED_SHARE = 100, 3, 2_000, 10, 0.1
START = datetime(2026, 1, 1, tzinfo=UTC)


def digest(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()


def fill(ledger: Ledger, versions: int, chance: random.Random) -> dict[str, int]:
    """A factory's history: chains of retrainings under 100 names; a tenth of all versions are merged from four."""
    rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in (VersionRow, EdgeRow, EvaluationRow, PromotionRow)}
    bases = [digest("base", n) for n in range(BASES)]
    data = [digest("data", n) for n in range(DATASETS)]
    code, row_set = digest("code"), digest("rows")
    specs = [digest("spec", n) for n in range(versions)]
    newest: dict[str, list[int]] = {}
    adapters: list[int] = []
    for place in range(versions):
        row_id, at = place + 1, START + timedelta(minutes=place)
        merged = place > 100 and chance.random() < MERGED_SHARE
        name = f"merged-{place % 10}" if merged else f"task-{chance.randrange(NAMES)}"
        mine = newest.setdefault(name, [])
        edges: list[tuple[str, str, Any]] = [("base", "base", bases[0]), ("code", "code", code)]
        if merged:
            edges += [("parent", "parent_id", parent) for parent in chance.sample(adapters, min(4, len(adapters)))]
        else:
            edges += [("window" if mine else "dataset", "dataset", chance.choice(data))]
            edges += [("replay", "dataset", chance.choice(data)), ("start", "parent_id", mine[-1])] if mine else []
            adapters.append(row_id)
        for where, (role, column, target) in enumerate(edges):
            empty = dict.fromkeys(("parent_id", "base", "dataset", "code"))
            rows[EdgeRow].append({"child_id": row_id, "place": where, "role": role, **empty, column: target})
        rows[VersionRow].append(
            {
                "id": row_id, "name": name, "number": len(mine) + 1, "kind": "merged" if merged else "adapter",
                "version_key": digest("key", place), "artifact": digest("artifact", place), "base": bases[0],
                "code": code, "spec": specs[place], "manifest": digest("manifest", place), "metrics": {"loss": 0.5},
                "figures": None, "run": None, "flow_run": None, "created_at": at,
            }
        )  # fmt: skip
        number = len(mine) + 1
        if number % 3 == 1:
            seq, before = (number + 2) // 3, number - 3
            rows[PromotionRow].append(
                {
                    "name": name, "seq": seq, "prior_seq": seq - 1 if seq > 1 else None, "move": "promote",
                    "previous": before if seq > 1 else None, "number": number, "decision": {}, "actor": "",
                    "reason": "better", "created_at": at,
                }
            )  # fmt: skip
        mine.append(row_id)
        for where in range(EVALUATIONS_EACH):
            rows[EvaluationRow].append(
                {
                    "version_id": row_id, "base": None, "dataset": data[(place + where) % DATASETS], "side": "test",
                    "metric": "exact_match", "score": 0.9, "n": 10, "low": 0.8, "high": 0.95, "row_set": row_set,
                    "outcomes": BLOB, "created_at": at,
                }
            )  # fmt: skip
    fixed = {"created_at": START}
    with ledger.database.writing() as session:
        session.execute(
            insert(BaseRow),
            [
                {
                    "digest": b,
                    "name": f"base-{n}",
                    "revision": None,
                    "architecture": "llama",
                    "parameters": 10**9,
                    **fixed,
                }
                for n, b in enumerate(bases)
            ],
        )
        session.execute(insert(CodeRow), [{"digest": code, "packages": {}, "versions": {}, **fixed}])
        session.execute(
            insert(DatasetRow),
            [
                {
                    "digest": d,
                    "task": f"task-{n % NAMES}",
                    "source": "rows.jsonl",
                    "source_digest": d,
                    "rows_in": 100,
                    "accepted": 100,
                    "quarantined": 0,
                    "deduplicated": 0,
                    "purpose": "training",
                    **fixed,
                }
                for n, d in enumerate(data)
            ],
        )
        session.execute(insert(RowSetRow), [{"digest": row_set, "n": 10, "keys": packed([str(n) for n in range(10)])}])
        session.execute(
            insert(NameRow), [{"name": name, "last_number": len(ids), **fixed} for name, ids in newest.items()]
        )
        session.execute(insert(SpecRow), [{"digest": s, "body": {"task": "t", "seed": n}} for n, s in enumerate(specs)])
        for table, filled in rows.items():
            session.execute(insert(table), filled)
    return {"versions": versions, "evaluations": len(rows[EvaluationRow]), "edges": len(rows[EdgeRow])}


BLOB = packed([[1.0] * 10, []])


def questions(ledger: Ledger, versions: int, chance: random.Random) -> dict[str, Callable[[], object]]:
    """What people and flows ask, each time of another subject."""

    def some_version() -> str:
        return chance.choice(refs)

    refs = [version.ref for version in ledger.versions()[: versions : max(1, versions // 500)]]
    merged = [ref for ref in refs if ref.startswith("merged")]
    data = [digest("data", n) for n in range(DATASETS)]
    return {
        "list of names": lambda: ledger.listed(),
        "versions of a name": lambda: ledger.listed(f"task-{chance.randrange(NAMES)}"),
        "champion": lambda: ledger.champion(f"task-{chance.randrange(NAMES)}"),
        "version by reference": lambda: ledger.version(some_version()),
        "scores of a version": lambda: ledger.evaluations(some_version()),
        "history of a name": lambda: ledger.history(f"task-{chance.randrange(NAMES)}"),
        "lineage up of an adapter": lambda: ledger.lineage(some_version(), "up"),
        "lineage up of a merged model": lambda: ledger.lineage(chance.choice(merged), "up"),
        "lineage down": lambda: ledger.lineage(some_version(), "down"),
        "what contains a version": lambda: ledger.containing(some_version()),
        "what contains a data set": lambda: ledger.containing(f"dataset:{chance.choice(data)}"),
        "what contains the base of all": lambda: ledger.containing(f"base:{digest('base', 0)}"),
    }


def measured(ask: Callable[[], object], repeats: int) -> dict[str, float]:
    took, busy = [], []
    for _ in range(repeats):
        began, spent = time.perf_counter(), time.process_time()
        ask()
        took.append((time.perf_counter() - began) * 1000)
        busy.append((time.process_time() - spent) * 1000)
    first, ordered = took[0], sorted(took)
    place = int(0.95 * (len(ordered) - 1))
    middle = ordered[len(ordered) // 2]
    return {"first_ms": first, "median_ms": middle, "p95_ms": ordered[place], "cpu_p95_ms": sorted(busy)[place]}


def print_plans(ledger: Ledger, asked: dict[str, Callable[[], object]]) -> None:
    """SQLite's own words on each statement of each question."""
    seen: list[tuple[str, Any]] = []
    with ledger.database.reading() as session:
        engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", lambda c, cursor, text, values, *_: seen.append((text, values)))
    for name, ask in asked.items():
        seen.clear()
        ask()
        print(f"\n{name}")
        told = set()
        for text, values in [(t, v) for t, v in seen if t.lstrip().upper().startswith(("SELECT", "WITH"))]:
            with ledger.database.reading() as session:
                plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).fetchall()
            told |= {row[3] for row in plan}
        for line in sorted(told):
            print(f"  {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--plans", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="factory-scale-") as folder:
        url = f"sqlite:///{Path(folder)}/ledger.db"
        with Ledger.open(url) as ledger:
            sizes = fill(ledger, asked.versions, random.Random(0))
        print(", ".join(f"{count:,} {what}" for what, count in sizes.items()))
        found: dict[str, dict[str, float]] = {}
        with Ledger.open(url) as ledger:
            for name, ask in questions(ledger, asked.versions, random.Random(1)).items():
                found[name] = measured(ask, asked.repeats)
                print(f"{name:32} " + "  ".join(f"{key} {value:8.2f}" for key, value in found[name].items()))
            everything = f"base:{digest('base', 0)}"
            drawn = measured(lambda: ledger.lineage(everything, "down"), 5)["median_ms"]
            print(f"(all {asked.versions:,} versions in one drawing: {drawn:.0f} ms; nobody reads that)")
            if asked.plans:
                print_plans(ledger, questions(ledger, asked.versions, random.Random(1)))
    worst, cpu = (max(times[key] for times in found.values()) for key in ("p95_ms", "cpu_p95_ms"))
    each = {name: {key: round(times[key], 2) for key in ("p95_ms", "cpu_p95_ms")} for name, times in found.items()}
    print(json.dumps({"worst_p95_ms": round(worst, 2), "worst_cpu_p95_ms": round(cpu, 2), **sizes, "queries": each}))


if __name__ == "__main__":
    main()
