"""What a run shows people: a page that opens without a network, artifacts on the Prefect run, and everything in MLflow.

Each flow's outcome becomes sections of sentences, tables and figures; one value, shown in all places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext

from flows import mirroring
from flows.data_report import data_section
from flows.policy import over_network
from flows.progress import voice
from flows.report import Bytes, Figure, Report, Section, Table, as_markdown, write_report
from flows.wiring import Home
from registry.records import EvaluationRecord, VersionRecord
from tasks.promotion import Decision
from tasks.training.curve import Curve
from tasks.training.diagnosis import Finding

if TYPE_CHECKING:
    from flows.learn import Candidate
    from flows.merge import MergeOutcome
    from flows.retrain import RetrainOutcome
    from flows.train import TrainOutcome
    from flows.validate import Dataset
    from registry.tracking import Run
    from tasks.drift.verdict import DriftReport
    from tasks.memory import MemoryPlan


mirrored = over_network(mirroring.mirrored)


def publish_validation(home: Home, data: Dataset, redact: bool = False) -> None:
    """A page about one snapshot; with `redact` no text of its rows is in it."""
    name, title = f"data-{data.record.task}-{data.digest[:8]}", f"Data of {data.record.task}"
    page = published(home, name, title, [data_section(data, redact)])
    voice.say(f"  report {page}")


def publish_training(home: Home, outcome: TrainOutcome, data: Dataset, plan: MemoryPlan) -> None:
    """A page about one trained version."""
    published(home, outcome.version.ref, outcome.version.ref, training_sections(outcome, data, plan))


def publish_decision(ref: str, decision: Decision) -> None:
    """The gates of a candidate on its Prefect run."""
    artifact(f"gates-{ref}", as_markdown(Section(f"Gates of {ref}", (decision.sentence,), (gates_table(decision),))))


def publish_drift(home: Home, champion: VersionRecord, report: DriftReport) -> None:
    """A page about one window of traffic."""
    published(home, f"drift-{champion.ref}", f"Traffic of {champion.name}", [drift_section(champion, report)])


def publish_retrain(home: Home, outcome: RetrainOutcome) -> None:
    """A page about one candidate beside its champion, and what every version of the task still knows."""
    from flows.forgetting import forgetting_section
    from tasks.specs import AdapterSpec

    margin = AdapterSpec.model_validate(outcome.version.spec).evaluation.gates.max_forgetting
    sections = [retrain_section(outcome), forgetting_section(home, outcome, margin)]
    published(home, outcome.version.ref, f"{outcome.version.ref} against {outcome.champion.ref}", sections)


def publish_merge(home: Home, outcome: MergeOutcome) -> None:
    """A page about one merged model."""
    from flows.merge_report import merge_sections

    published(home, outcome.version.ref, f"Merged model {outcome.version.ref}", merge_sections(outcome))


def publish_comparison(
    home: Home, run: Run, task: str, table: Table, figures: Mapping[str, Mapping[str, float]]
) -> None:
    """A page about compared methods; table and figures are in the run of the comparison too, by setting."""
    section = Section(table.title, (), (table,))
    page = published(home, f"compare-{task}-{run.key[:8]}", f"Methods on {task}", [section])
    run.log_text("comparison.md", as_markdown(section))
    run.log_text("comparison.json", json.dumps({"columns": table.columns, "rows": table.rows}, indent=2) + "\n")
    run.log_metrics({f"{setting}/{name}": value for setting, own in figures.items() for name, value in own.items()})
    voice.say(f"  report {page}")


def published(home: Home, name: str, title: str, sections: Sequence[Section]) -> Path:
    """The page under <home>/reports, and its sections as one artifact of the Prefect run."""
    path = home.settings.home / "reports" / f"{slug(name)}.html"
    write_report(path, Report(title, tuple(sections)))
    artifact(name, "\n\n".join(as_markdown(section) for section in sections))
    return path


def artifact(name: str, markdown: str) -> None:
    """A markdown artifact of the flow run that this code runs in, if it does."""
    if FlowRunContext.get() is not None:
        create_markdown_artifact(markdown, key=slug(name))


def slug(name: str) -> str:
    """Lower-case letters, digits and dashes, as Prefect wants its keys.

    >>> slug("triage:3")
    'triage-3'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def figures_of(
    task: str, curve: Curve, findings: tuple[Finding, ...], scores: Mapping[str, EvaluationRecord]
) -> dict[str, bytes]:
    """The images that are kept with a version: its curve, and its scores beside the base's."""
    from tasks.figures.scores import ScoreRow
    from tasks.figures.scores import scores as drawn

    rows = [ScoreRow(task, who, e.score, e.low, e.high) for who, e in scores.items()]
    metric = next(iter(scores.values())).metric
    dots = drawn(rows, metric=metric, title=f"{task} on test rows")
    return {"curve.svg": curve_figure(task, curve, findings), "scores.svg": dots}


@lru_cache(maxsize=16)
def curve_figure(task: str, curve: Curve, findings: tuple[Finding, ...]) -> bytes:
    """Loss, validation loss, rate and gradient norm over the steps; drawn once for all places."""
    from tasks.figures.curves import training_curve

    return training_curve(
        [s.step for s in curve.steps],
        [s.loss for s in curve.steps],
        validation=[(look.step, look.loss) for look in curve.looks],
        rates=[s.rate for s in curve.steps],
        grad_norms=[s.grad_norm for s in curve.steps],
        verdict=findings[0].sentence,
        name=task,
    )


def training_curves(fleet: Mapping[str, TrainOutcome | None]) -> tuple[Figure, ...]:
    """One curve per adapter that was trained in this run."""
    return tuple(
        Figure(curve_figure(task, o.candidate.curve, o.candidate.findings), o.candidate.findings[0].sentence)
        for task, o in fleet.items()
        if o is not None and o.candidate is not None
    )


def training_sections(outcome: TrainOutcome, data: Dataset, plan: MemoryPlan) -> list[Section]:
    """Data, plan, curve and verdict, scores and gates of one version."""
    sections = [data_section(data), Section("Memory plan", (), (memory_table(plan),))]
    if outcome.candidate is not None:
        candidate = outcome.candidate
        figure = Figure(
            curve_figure(outcome.version.name, candidate.curve, candidate.findings),
            "Training loss, validation loss, rate and gradient norm.",
        )
        sections.append(
            Section("Training", tuple(f.sentence for f in candidate.findings), (run_table(candidate),), (figure,))
        )
    scores = {"untouched base": outcome.base_scores, "adapter": outcome.scores}
    sections.append(
        Section("Scores and gates", (outcome.decision.sentence,), (scores_table(scores), gates_table(outcome.decision)))
    )
    return sections


def memory_table(plan: MemoryPlan) -> Table:
    """Bytes by cause, the largest first."""
    rows = sorted(plan.causes.items(), key=lambda row: -row[1])
    note = (
        f"{plan.trainable:,} of {plan.parameters:,} parameters train; {plan.micro_batch} rows of {plan.tokens} tokens"
    )
    lines = [(cause, Bytes(size)) for cause, size in rows]
    lines += [("peak", Bytes(plan.peak_bytes)), ("available", Bytes(plan.available_bytes))]
    return Table("Memory plan", ("cause", "bytes"), tuple(lines), note)


def run_table(candidate: Candidate) -> Table:
    """What the run cost."""
    return Table(
        "Run",
        ("what", "value"),
        (*((k, f"{v:,.4g}") for k, v in candidate.figures.items()), ("compute", candidate.compute)),
    )


def scores_table(scores: Mapping[str, EvaluationRecord]) -> Table:
    """Models on the same rows."""
    rows = tuple((who, e.score, e.low, e.high, e.n) for who, e in scores.items())
    metric = next(iter(scores.values())).metric if scores else "score"
    return Table(f"{metric}, 95 % intervals", ("model", metric, "low", "high", "n"), rows)


def gates_table(decision: Decision) -> Table:
    """Every gate with its figures."""
    rows = tuple((g.name, g.measured, g.bound, g.required, g.n, g.passed) for g in decision.gates)
    return Table("Gates", ("gate", "measured", "bound", "must exceed", "n", "passed"), rows)


def drift_section(champion: VersionRecord, report: DriftReport) -> Section:
    """The verdict with its evidence."""
    rows = tuple(
        (e.signal, e.statistic, e.value, e.threshold, "" if e.p is None else f"{e.p:.2g}", e.moved)
        for e in report.evidence
    )
    table = Table("Signals", ("signal", "statistic", "value", "counts from", "p", "moved"), rows)
    examples = tuple(f"{e.signal}: {'; '.join(e.examples[:5])}" for e in report.evidence if e.examples)
    return Section(f"Traffic of {champion.name} against {champion.ref}", (report.sentence, *examples), (table,))


def retrain_section(outcome: RetrainOutcome) -> Section:
    """Base, champion and candidate on every slice, and the matrix of what was forgotten."""
    from tasks.figures.forgetting import forgetting_matrix

    names = list(outcome.scores["candidate"])
    people = {"base": "untouched base", "champion": outcome.champion.ref, "candidate": outcome.version.ref}
    rows = tuple((people[who], *(outcome.scores[who][name].score for name in names)) for who in people)
    table = Table("Score per slice", ("model", *names), rows)
    image = forgetting_matrix(
        [outcome.champion.ref, outcome.version.ref],
        names,
        [[outcome.scores[who][name].score for name in names] for who in ("champion", "candidate")],
        title="Score per frozen slice",
    )
    title = f"{outcome.version.ref} against {outcome.champion.ref}"
    return Section(
        title,
        (outcome.decision.sentence, *outcome.sayings),
        (table, gates_table(outcome.decision)),
        (Figure(image, "Score per frozen slice, and the change against the version before."),),
    )
