"""The whole cycle on the embedded base, with real training: the story that the README tells, as it happens here."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from prefect import flow

from flows.fleet import fleet
from flows.merge import MergeOutcome, merge
from flows.merge_report import merge_sections
from flows.progress import voice
from flows.publish import drift_section, published, retrain_section, training_curves
from flows.report import Section, Table
from flows.retrain import RetrainOutcome, retrain
from flows.train import TrainOutcome
from flows.watch import Watched, watch
from flows.wiring import opened
from tasks.errors import SpecRefused

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart"
TASKS = ("triage", "extract", "reply")
SHORT = 0.6  # share of the steps in the short form


@dataclass(frozen=True)
class Story:
    """What the five chapters came to."""

    fleet: Mapping[str, TrainOutcome | None]
    watched: Watched
    naive: RetrainOutcome
    replay: RetrainOutcome
    merged: MergeOutcome
    seconds: float


def demo(short: bool = False) -> None:
    """Tell the story and print its tables and where to look.

    Raises:
        SpecRefused: the examples are not beside the packages.
    """
    if not QUICKSTART.is_dir():
        raise SpecRefused.one("E-SPEC-017", QUICKSTART, "missing", "run the demo from a checkout of the project")
    voice.say("starting the embedded Prefect server (about ten seconds)")
    Thread(target=load_libraries, daemon=True).start()
    from flows.cli import print_table

    done = story(short)
    home = opened()
    tables = tables_of(done)
    report = published(home, "demo", "One cycle of the factory", sections_of(done, tables))
    for table in tables:
        print_table(table)
    champion = done.replay.version.ref if done.replay.promoted else done.replay.champion.ref
    print(f"{done.seconds:.0f} s. Where to look:")
    print(f"  the report             {report}")
    print(f"  the merged model       {done.merged.folder or 'not exported: a gate refused it'}")
    print("  Prefect and MLflow UI  .venv/bin/factory up   then http://127.0.0.1:4200 and http://127.0.0.1:5000")
    print(f"  one version            .venv/bin/factory show {champion}")
    print(f"  its ancestry           .venv/bin/factory lineage {done.merged.version.ref}")


def load_libraries() -> None:
    """The slow imports, while the server starts in a process of its own."""
    import great_expectations  # noqa: F401

    from tasks.training import base

    base.load_libraries()


@flow(name="demo", description="Train three adapters, watch traffic move, retrain with replay, merge, export.")
def story(short: bool) -> Story:
    """Five chapters, each a flow of its own.

    Args:
        short: Train for fewer steps.
    """
    began = time.monotonic()
    specs = prepared(short)
    traffic = str(QUICKSTART / "data" / "traffic.jsonl")
    voice.say("\n1/5 Three tasks, three QLoRA adapters on one NF4 base")
    trained = fleet([str(specs / f"{task}.yaml") for task in TASKS])
    voice.say("\n2/5 The next quarter's traffic arrives")
    (watched,) = watch("triage", traffic)
    voice.say("\n3/5 A plain retrain, on the new traffic alone")
    naive = retrain("triage", traffic, replay_share=0.0)
    voice.say("\n4/5 A retrain with replay of what the champion learned from")
    replay = retrain("triage", traffic)
    voice.say("\n5/5 Three champions into one model")
    merged = merge(str(specs / "merge.yaml"), str(opened().settings.home / "desk"))
    return Story(trained, watched, naive, replay, merged, time.monotonic() - began)


def prepared(short: bool) -> Path:
    """The folder of the specs, with their data generated; the short form has specs of its own beside them."""
    generate = [sys.executable, str(QUICKSTART / "generate.py"), "--out", str(QUICKSTART / "data")]
    voice.say(subprocess.run(generate, check=True, capture_output=True, text=True).stdout.strip())  # noqa: S603 - our own script
    if not short:
        return QUICKSTART
    folder = QUICKSTART / "data" / "short"
    folder.mkdir(exist_ok=True)
    for path in QUICKSTART.glob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("../base", "../../../base").replace("data/", "../")
        text = re.sub(r"steps: (\d+)", lambda found: f"steps: {round(SHORT * int(found[1]))}", text)
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def tables_of(story: Story) -> tuple[Table, ...]:
    """The story in four tables."""
    return (experts_table(story), retrain_table(story), merge_table(story), answers_table(story))


def sections_of(story: Story, tables: tuple[Table, ...]) -> list[Section]:
    """The closing tables first, then each chapter in full."""
    experts, moved, kept, answers = tables
    return [
        Section("Three adapters", (), (experts,), training_curves(story.fleet)),
        Section("The traffic moved", (), (moved,)),
        drift_section(story.watched.version, story.watched.report),
        retrain_section(story.naive),
        retrain_section(story.replay),
        Section("One model", (), (kept, answers)),
        *merge_sections(story.merged),
    ]


def experts_table(story: Story) -> Table:
    """Each adapter beside the untouched base."""
    rows = [
        (task, o.version.ref, o.base_scores.score, o.scores.score, o.scores.low, o.scores.high, o.scores.n, o.promoted)
        for task, o in story.fleet.items()
        if o is not None
    ]
    columns = ("task", "version", "base", "adapter", "low", "high", "n", "champion")
    return Table("Three adapters (exact match on test rows, 95 % intervals)", columns, tuple(rows))


def retrain_table(story: Story) -> Table:
    """Old and new scores of base, old champion, naive retrain and replay retrain."""
    naive, replay = story.naive, story.replay
    people = (
        ("untouched base", replay.scores["base"], ""),
        (f"old champion {replay.champion.ref}", replay.scores["champion"], ""),
        (f"plain retrain {naive.version.ref}", naive.scores["candidate"], verdict(naive)),
        (f"with replay {replay.version.ref}", replay.scores["candidate"], verdict(replay)),
    )
    old = next(name for name in replay.scores["base"] if name != replay.fresh)
    rows = [(who, s[old].score, s[old].n, s[replay.fresh].score, s[replay.fresh].n, gate) for who, s, gate in people]
    columns = ("triage", "old test", "n", "new traffic", "n ", "gate")
    return Table("The traffic moved", columns, tuple(rows), story.watched.report.sentence)


def verdict(outcome: RetrainOutcome) -> str:
    """What the gate said, in a table cell."""
    failed = [gate for gate in outcome.decision.gates if not gate.passed]
    if not failed:
        return "promoted" if outcome.promoted else "passed"
    return "refused: " + "; ".join(
        f"{g.name} {g.measured:+.3f}, bound {g.bound:+.3f} not above {g.required:+.3f}" for g in failed
    )


def merge_table(story: Story) -> Table:
    """Every rule's best setting on every task, with the share of the expert's gain that it keeps."""
    merged = story.merged
    tasks = list(merged.scores["base"])
    base, experts = merged.scores["base"], merged.scores["experts"]
    rows = []
    for who, scores in merged.scores.items():
        kept = [kept_share(scores[t].score, experts[t].score, base[t].score) for t in tasks]
        mark = "chosen" if who == merged.chosen else ""
        rows.append((who, *(scores[t].score for t in tasks), min(kept), sum(kept) / len(kept), mark))
    columns = ("model", *tasks, "worst kept", "mean kept", "")
    return Table("One model for three tasks (exact match on test rows)", columns, tuple(rows), merged.decision.sentence)


def kept_share(merged: float, expert: float, base: float) -> float:
    """(merged - base) / (expert - base)."""
    return (merged - base) / (expert - base) if expert != base else 1.0


def answers_table(story: Story) -> Table:
    """What the exported model answered in a fresh process."""
    rows = [
        (task, " / ".join(asked.splitlines()), said.strip()) for task, (asked, said) in story.merged.answers.items()
    ]
    return Table("The exported model, in a fresh process", ("task", "request", "answer"), tuple(rows))
