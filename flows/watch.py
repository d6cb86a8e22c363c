"""New traffic of the served tasks, read and judged: what moved, how much it costs, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.events import emit_event

from flows.claims import ASKS, claimant_of, held_back, interrupted, vain_retrains
from flows.fresh import fresh_events, rows_needed
from flows.learn import datasets_of, threads
from flows.policy import cheap, on_gpu
from flows.progress import voice
from flows.publish import publish_drift
from flows.replay import in_force
from flows.streams import streamed
from flows.traffic import inbox_taken_in, known_events
from flows.validate import remembered_dataset
from flows.wiring import Home, opened
from infra.automations import DRIFT_EVENT, drift_resource
from registry.fingerprint import fingerprint
from registry.records import FindingRecord, VersionRecord
from registry.traffic import Event, TrafficStore
from tasks.data.examples import Example, example_of, input_columns, target_columns
from tasks.drift.asked_format import asks_format, has_format
from tasks.drift.faults import floods
from tasks.drift.observed import Observed
from tasks.drift.traffic import newest, read_traffic
from tasks.drift.verdict import DriftReport, judge
from tasks.errors import DataRefused, Problem, raise_if_any
from tasks.specs import AdapterSpec

intake = cheap(inbox_taken_in)


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
        task: One task; by default every task that has a champion and traffic.
        traffic: A traffic file (JSONL, CSV or Parquet), judged by itself; by default the store, after the files in
            <home>/traffic/<task>/ were taken in.

    Raises:
        DataRefused: nothing is served or was asked of `task`; or files in an inbox were refused, after all else was
            taken in and judged.
    """
    home = opened()
    found: list[Watched] = []
    refused: list[Problem] = []
    for name in [task] if task else home.ledger.names():
        champion = home.ledger.champion(name)
        if champion is None or champion.kind != "adapter":
            if task:
                raise nothing_to_watch(name, champion)
            continue
        refused += () if traffic else intake(home, champion)
        window = arrived(champion, traffic) if traffic else newest_arrivals(home, champion)
        if window.rows or window.malformed:
            found.append(watched(home, champion, window, traffic))
        elif task and not refused:
            raise nothing_to_watch(name, champion)
    raise_if_any(DataRefused, refused)
    if not found:
        voice.say("no served task has traffic")
    return found


def watched(home: Home, champion: VersionRecord, came: Window, source: str | None) -> Watched:
    """One champion held against one window of traffic."""
    arrivals = came.rows
    spec = AdapterSpec.model_validate(champion.spec)
    where = Path(source).name if source else "its traffic"
    voice.say(f"{champion.name}: watching {where} against {champion.ref}")
    judged_on = reference_examples(home, champion, spec)
    reference, window = observed(spec, home.ledger.files(champion.ref), judged_on, [row.example for row in arrivals])
    window = graded(window, arrivals)
    vain = vain_retrains(home, champion)
    labelled = sum(row.labelled for row in arrivals) if source else len(fresh_events(home, champion))
    enough = labelled >= rows_needed(spec)
    report = judge(
        reference,
        window,
        spec.drift,
        seed=spec.seed,
        set_aside=came.malformed,
        among=came.among,
        in_vain=vain,
        judgeable=enough,
    )
    digest = window_digest(arrivals)
    remembered = {
        **report.payload(),
        "label_these": [arrivals[row].id for row in report.to_label],
        "online": told_in_order(home, champion, reference, window, arrivals),
    }
    finding = home.ledger.remember_finding(
        FindingRecord(
            champion.name,
            champion.ref,
            digest,
            report.verdict,
            report.action,
            remembered,
            rows=len(arrivals),
            source=where,
        )
    )
    voice.say(f"  {report.sentence}")
    if report.to_label and not enough:
        voice.say(f"  {labelled} fresh requests are labelled; a retrain begins with {rows_needed(spec)}")
    if report.to_label:
        first = ", ".join(remembered["label_these"][:5])
        voice.say(f"  labels of {len(report.to_label)} requests would tell most: {first}, ... (in the finding)")
    publish_drift(home, champion, report)
    if finding.action == ASKS:
        call_for_retrain(home, champion, finding, source)
    return Watched(champion, report, finding, source or "")


def told_in_order(
    home: Home, champion: VersionRecord, reference: Observed, window: Observed, arrivals: Sequence[Arrival]
) -> dict[str, Any]:
    """What the detectors say of the graded requests that they were not told before; nothing where none is graded."""
    usual = [one for one in reference.outcomes if one is not None]
    told = [
        (row.at, one)
        for row, one in zip(arrivals, window.outcomes, strict=True)
        if one is not None and row.at is not None
    ]
    return streamed(home, champion, sum(usual) / len(usual), told) if usual and told else {}


def call_for_retrain(home: Home, champion: VersionRecord, finding: FindingRecord, source: str | None) -> None:
    """The drift event, unless the window has caused a retrain already or the task is left in peace for now."""
    again = interrupted(home, champion.name, finding.window_digest)
    wait = None if again else held_back(home, champion)
    if not again and claimant_of(home, champion.name, finding.window_digest) is not None:
        voice.say(f"  window {finding.window_digest[:12]} has caused a retrain already")
    elif wait is not None:
        voice.say(f"  no retrain before {wait.until:%Y-%m-%d %H:%M} UTC: {wait.because}")
    else:
        payload = {
            "task": champion.name,
            "version": champion.ref,
            "window": finding.window_digest,
            "verdict": finding.verdict,
            "expected_gain": finding.report.get("expected_gain"),
            "traffic": source,
        }
        emit_event(DRIFT_EVENT, resource=drift_resource(champion.name), payload=payload)


@dataclass(frozen=True)
class Arrival:
    """One row of traffic as the spec asks it; `labelled` if the truth came with it."""

    example: Example
    id: str
    source: str
    labelled: bool
    at: datetime | None = None


@dataclass(frozen=True)
class Window:
    """The rows that are judged, oldest first; `malformed` ones came beside the `among` newest requests, which are
    these but for the bound on one sender's share."""

    rows: Sequence[Arrival]
    malformed: int
    among: int


def window_digest(arrivals: Sequence[Arrival]) -> str:
    """A window by its rows and what is known of them: a label that came late makes it another window."""
    return fingerprint([[row.id, row.example.target if row.labelled else None] for row in arrivals])


@cheap
def arrived(champion: VersionRecord, source: str) -> Window:
    """The newest requests of a traffic file, and how many rows of it that came since the oldest were malformed.

    Raises:
        DataRefused: the file cannot be read, or its rows lack the columns that the prompt is made of.
    """
    spec = AdapterSpec.model_validate(champion.spec)
    traffic = read_traffic(Path(source), inputs=input_columns(spec), now=datetime.now(UTC), truth=target_columns(spec))
    count = spec.drift.window_rows
    rows = latest = newest(traffic.rows, count)
    if not floods([row.source for row in rows]):  # a flood is shown as it is, and stops the loop
        rows = newest(traffic.rows, count, per_source=max(1, int(spec.drift.per_source * count)))
    judged = [arrival_of(spec, place, row.id, row.source, row.columns, row.time) for place, row in enumerate(rows)]
    return Window(judged, traffic.malformed(latest[0].time if latest else None), len(latest))


@cheap
def newest_arrivals(home: Home, champion: VersionRecord) -> Window:
    """The newest requests in the store, and how many rows that came since the oldest were malformed, in any file.

    A window begins after the newest request that the champion learned from: it would be right on those that it knows.
    """
    spec = AdapterSpec.model_validate(champion.spec)
    known = spec.retrain.through

    def since_then(events: Sequence[Event]) -> list[Event]:
        return [row for row in events if known is None or row.at is None or row.at > known]

    rows = known_events(home, champion, spec.drift.window_rows, capped=False)
    latest = since_then(rows)
    if not floods([row.source for row in rows]):
        rows = known_events(home, champion, spec.drift.window_rows)
    judged = [
        arrival_of(spec, place, row.id, row.source, row.columns, row.at) for place, row in enumerate(since_then(rows))
    ]
    store = TrafficStore(home.ledger.database)
    malformed = store.malformed(champion.name, since=latest[0].at if latest else None, after=known)
    return Window(judged, malformed, len(latest))


def arrival_of(
    spec: AdapterSpec, place: int, name: str, source: str, columns: Mapping[str, str], at: datetime | None
) -> Arrival:
    """A request as the spec asks it, with its answer where that is known."""
    truth = target_columns(spec)
    example = example_of(spec, {**dict.fromkeys((*input_columns(spec), *truth), ""), **columns}, place)
    return Arrival(example, name, source, all(columns.get(column) for column in truth), at)


def reference_examples(home: Home, champion: VersionRecord, spec: AdapterSpec) -> list[Example]:
    """The rows that the champion was judged on, frozen with the version, but for those whose label holds no longer."""
    rows = [e for digest in datasets_of(champion) for e in in_force(spec, remembered_dataset(home, digest), "test")]
    return sorted(rows, key=lambda example: example.key)[: spec.drift.window_rows]


@on_gpu
def observed(spec: AdapterSpec, adapter: Path, *groups: Sequence[Example]) -> list[Observed]:
    """What the served adapter says to each group of rows, how sure it is, and where the base places them."""
    from tasks.drift.embedding import points_of
    from tasks.evaluation.scoring import answers, perplexities, score
    from tasks.methods.build import attached
    from tasks.training.base import load_base

    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
    found = []
    with threads(spec.resources.threads):
        points = [points_of(base, [row.input for row in rows]) for rows in groups]
    # all may say as much, also where the truth is not known yet
    longest = max((len(base.tokenizer(row.target)["input_ids"]) for rows in groups for row in rows), default=1)
    with threads(spec.resources.threads), attached(base, adapter) as model:
        for rows, places in zip(groups, points, strict=True):
            inputs = tuple(row.input for row in rows)
            said = answers(base, model, inputs, max_new_tokens=longest + 8)
            right = tuple(float(answer.text == row.target) for answer, row in zip(said, rows, strict=True))
            writes = spec.kind == "generation"
            found.append(
                Observed(
                    inputs=inputs,
                    tokens=tuple(tuple(ids) for ids in base.tokenizer(list(inputs))["input_ids"]) if inputs else (),
                    confidences=tuple(answer.confidence for answer in said),
                    predictions=tuple(answer.text for answer in said),
                    labels=tuple(row.target for row in rows),
                    outcomes=score(base, model, rows, spec.metric).outcomes
                    if spec.metric == "token_accuracy"
                    else right,
                    points=tuple(places),
                    entropies=tuple(answer.entropy for answer in said),
                    perplexities=tuple(perplexities(base, model, inputs)) if writes else (),
                    well_formed=tuple(has_format(spec, answer.text) for answer in said) if asks_format(spec) else (),
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


def nothing_to_watch(task: str, champion: VersionRecord | None) -> DataRefused:
    wrong = (
        "no version is served"
        if champion is None
        else "is no adapter"
        if champion.kind != "adapter"
        else "there is no traffic of it that came after what it learned from"
    )
    return DataRefused(Problem("E-DRIFT-021", task, wrong, "promote a version, and name a traffic file or add one"))
