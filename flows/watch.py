"""New traffic of the served tasks, read and judged: what moved, how much it costs, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.events import emit_event

from flows.learn import datasets_of, threads
from flows.policy import cheap, on_gpu
from flows.progress import voice
from flows.publish import publish_drift
from flows.validate import remembered_dataset
from flows.wiring import Home, opened
from infra.automations import DRIFT_EVENT, drift_resource
from registry.fingerprint import fingerprint
from registry.records import FindingRecord, VersionRecord
from tasks.data.examples import Example, example_of, input_columns, target_columns
from tasks.drift.observed import Observed
from tasks.drift.traffic import newest, read_traffic
from tasks.drift.verdict import DriftReport, judge
from tasks.errors import DataRefused, Problem
from tasks.specs import AdapterSpec

TRAFFIC_SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Watched:
    """The verdict on one task's newest window."""

    version: VersionRecord
    report: DriftReport
    finding: FindingRecord
    traffic: str


@flow(name="watch", description="Judge the newest traffic of every served task, and call for a retrain where it moved.")
def watch(task: str | None = None, traffic: str | None = None) -> list[Watched]:
    """Verdicts on new traffic.

    Args:
        task: One task; by default every task that has a champion and traffic in its inbox.
        traffic: A traffic file (JSONL, CSV or Parquet); by default the newest in <home>/traffic/<task>/.
    """
    home = opened()
    found = []
    for name in [task] if task else home.ledger.names():
        champion = home.ledger.champion(name)
        source = traffic or newest_traffic(home, name)
        if champion is None or champion.kind != "adapter" or source is None:
            if task:
                raise nothing_to_watch(name, champion, source)
            continue
        found.append(watched(home, champion, source))
    if not found:
        voice.say("no served task has traffic in its inbox")
    return found


def watched(home: Home, champion: VersionRecord, source: str) -> Watched:
    """One champion held against one traffic file."""
    spec = AdapterSpec.model_validate(champion.spec)
    voice.say(f"{champion.name}: watching {Path(source).name} against {champion.ref}")
    arrivals, malformed = arrived(spec, source)
    judged_on = reference_examples(home, champion, spec)
    reference, window = observed(spec, home.ledger.files(champion.ref), judged_on, [row.example for row in arrivals])
    report = judge(reference, graded(window, arrivals), spec.drift, seed=spec.seed, set_aside=malformed)
    digest = fingerprint([row.id for row in arrivals])
    finding = home.ledger.remember_finding(
        FindingRecord(champion.name, champion.ref, digest, report.verdict, report.action, report.payload())
    )
    voice.say(f"  {report.sentence}")
    publish_drift(home, champion, report)
    if report.action == "retrain with replay":
        payload = {
            "task": champion.name,
            "version": champion.ref,
            "window": digest,
            "verdict": report.verdict,
            "traffic": source,
        }
        emit_event(DRIFT_EVENT, resource=drift_resource(champion.name), payload=payload)
    return Watched(champion, report, finding, source)


@dataclass(frozen=True)
class Arrival:
    """One row of traffic as the spec asks it; `labelled` if the truth came with it."""

    example: Example
    id: str
    source: str
    labelled: bool


@cheap
def arrived(spec: AdapterSpec, source: str) -> tuple[list[Arrival], int]:
    """The newest rows of a traffic file as the spec asks and answers them, and how many rows were malformed.

    Raises:
        DataRefused: the file cannot be read, or its rows lack the columns that the prompt is made of.
    """
    truth = target_columns(spec)
    traffic = read_traffic(Path(source), inputs=input_columns(spec), now=datetime.now(UTC))
    found = []
    for place, row in enumerate(newest(traffic.rows, spec.drift.window_rows)):
        example = example_of(spec, {**dict.fromkeys((*input_columns(spec), *truth), ""), **row.columns}, place)
        found.append(Arrival(example, row.id, row.source, all(row.columns.get(name) for name in truth)))
    return found, len(traffic.set_aside)


def reference_examples(home: Home, champion: VersionRecord, spec: AdapterSpec) -> list[Example]:
    """The rows that the champion was judged on: frozen with the version."""
    rows = [e for digest in datasets_of(champion) for e in remembered_dataset(home, digest).snapshot.examples("test")]
    return sorted(rows, key=lambda example: example.key)[: spec.drift.window_rows]


@on_gpu
def observed(spec: AdapterSpec, adapter: Path, *groups: Sequence[Example]) -> list[Observed]:
    """What the served adapter says to each group of rows, and how sure it is."""
    from tasks.evaluation.scoring import answers
    from tasks.methods.build import attached
    from tasks.training.base import load_base

    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
    found = []
    longest = max((len(base.tokenizer(row.target)["input_ids"]) for rows in groups for row in rows), default=1)
    with threads(spec.resources.threads), attached(base, adapter) as model:
        for rows in groups:  # all of them may say as much, also those whose truth is not known yet
            inputs = tuple(row.input for row in rows)
            said = answers(base, model, inputs, max_new_tokens=longest + 8)
            found.append(
                Observed(
                    inputs=inputs,
                    tokens=tuple(tuple(ids) for ids in base.tokenizer(list(inputs))["input_ids"]) if inputs else (),
                    confidences=tuple(answer.confidence for answer in said),
                    predictions=tuple(answer.text for answer in said),
                    labels=tuple(row.target for row in rows),
                    outcomes=tuple(float(answer.text == row.target) for answer, row in zip(said, rows, strict=True)),
                )
            )
    return found


def graded(window: Observed, arrivals: Sequence[Arrival]) -> Observed:
    """The window with labels and outcomes only where the truth came with the row."""
    return replace(
        window,
        labels=tuple(label if row.labelled else None for label, row in zip(window.labels, arrivals, strict=True)),
        outcomes=tuple(
            outcome if row.labelled else None for outcome, row in zip(window.outcomes, arrivals, strict=True)
        ),
        sources=tuple(row.source for row in arrivals),
    )


def newest_traffic(home: Home, task: str) -> str | None:
    """The newest file in a task's inbox, by name: files are named by their time."""
    inbox = home.settings.home / "traffic" / task
    files = sorted(path for path in inbox.glob("*") if path.suffix in TRAFFIC_SUFFIXES) if inbox.is_dir() else []
    return str(files[-1]) if files else None


def nothing_to_watch(task: str, champion: VersionRecord | None, source: str | None) -> DataRefused:
    wrong = (
        "no version is served"
        if champion is None
        else "there is no traffic file in its inbox"
        if source is None
        else "is no adapter"
    )
    return DataRefused(Problem("E-DRIFT-021", task, wrong, "promote a version, and name a traffic file"))
