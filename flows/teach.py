"""One training run: the loop with its voice, its run in MLflow, and the reading of its curve."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.calibration import CARD_BYTES, MEASURED, PLANNED
from flows.keep import base_files
from flows.learn import Candidate, answers_are_wanted_soon, device_memory, plan_run, portable, threads
from flows.policy import on_gpu
from flows.progress import voice
from flows.resuming import Workplace
from flows.validate import Dataset, base_folder
from flows.wiring import Home
from registry.fingerprint import fingerprint
from tasks.data.examples import Example
from tasks.errors import GateRefused, Problem
from tasks.memory import read_shapes
from tasks.specs import AdapterSpec
from tasks.training.curve import Look
from tasks.training.diagnosis import Finding, diagnose
from tasks.training.recipe import reach_of

if TYPE_CHECKING:
    from registry.tracking import Run
    from tasks.training.loop import Progress

CARD = "factory.json"
SOON_SECONDS = 10.0  # as long as a process takes to load torch, transformers and PEFT


class Unfit(GateRefused):
    """A run that came to nothing that may be kept, and what its curve says."""

    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0

    @classmethod
    def of(cls, name: str, findings: Sequence[Finding], seconds: float) -> Unfit:
        """The refusal of a run by its fatal findings."""
        remedy = "nothing was registered; change the recipe"
        unfit = cls(*(Problem("E-TRAIN-001", name, f.sentence, remedy) for f in findings if f.fatal))
        unfit.findings, unfit.seconds = tuple(findings), seconds
        return unfit


@on_gpu
def trained(
    home: Home,
    spec: AdapterSpec,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    name: str,
    tags: Mapping[str, str],
    datasets: Sequence[Dataset],
    start: Path | None = None,
    workplace: Workplace | None = None,
    attempt: int = 0,
    parent: str | None = None,
    apart: bool = False,
) -> Candidate:
    """One adapter, trained and read; every step is in MLflow while it runs.

    Args:
        workplace: where checkpoints lie; with it an interrupted run goes on, as the same run in MLflow.
        attempt: 0 for the run that was asked for; its repairs are its children in MLflow.
        parent: key of the run in MLflow under which it is shown.
        apart: in a fresh process, so that its peak of memory is its own whatever this one has done before.

    Raises:
        Unfit: the run came to nothing that may be kept (NaN, no gradient, diverged, the base unchanged).
        Stopped: SIGTERM came; the workplace holds a checkpoint.
    """
    from tasks.training.base import load_base
    from tasks.training.interruption import told_to_stop
    from tasks.training.loop import train_adapter

    if spec.resources.team_size > 1:
        from tasks.training.parallel import train_in_processes as train_it
    elif apart:
        from tasks.training.apart import train_apart as train_it
    else:
        base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
        train_it = partial(train_adapter, base)
    folder = Path(tempfile.mkdtemp(dir=home.scratch(), prefix=f"{spec.task}-"))
    try:
        place: dict[str, Any] = {"workplace": workplace, "attempt": attempt, "parent": parent}
        with recorded(home, spec, name=name, tags=tags, datasets=datasets, **place) as run:
            with threads(spec.resources.threads), told_to_stop() as stop:
                done = train_it(
                    spec,
                    train,
                    validation,
                    folder,
                    start=start,
                    checkpoints=workplace.checkpoints(attempt) if workplace else None,
                    stop=stop,
                    say=voice.say,
                    **heard_by(run, name),
                )
            run.log_tags({"factory.compute": done.compute})
            folder_of_base, longest = base_folder(spec.base), done.longest_tokens
            plan = plan_run(spec, folder_of_base, longest_tokens=longest, longest_answer=done.longest_answer)
            reach = reach_of(spec, read_shapes(folder_of_base), len(train))
            findings = diagnose(done.curve, change=done.change, reach=reach)
            figures = {
                "trainable_parameters": float(done.trainable_parameters),
                "train_seconds": done.seconds,
                "tokens_per_second": done.tokens_per_second,
                "padding_share": done.padding_share,
                "peak_bytes": float(done.peak_bytes),
                # a part of a run, or what the next one of a process takes besides, says nothing of a whole one
                PLANNED: float(sum(plan.above_base.values())) if done.peak_is_whole else float("nan"),
                CARD_BYTES: float(device_memory(spec).card_bytes),
                MEASURED: float(done.peak_above_start_bytes),
                "start_validation_loss": done.curve.start_loss if done.curve.start_loss is not None else float("nan"),
                "blind_loss": done.curve.blind_loss if done.curve.blind_loss is not None else float("nan"),
                "best_validation_loss": done.curve.best.loss if done.curve.best else float("nan"),
            }
            figures = {key: value for key, value in figures.items() if value == value}
            run.log_metrics(figures)
            voice.say(
                f"  trained in {done.seconds:.0f} s, {done.tokens_per_second:,.0f} tokens/s,"
                f" {done.padding_share:.1%} padding; {findings[0].sentence}"
            )
            if any(finding.fatal for finding in findings):
                raise Unfit.of(name, findings, done.seconds)
            (folder / CARD).write_text(json.dumps(card_of(spec), indent=2, sort_keys=True) + "\n", encoding="utf-8")
            if spec.kind == "classification":  # the names of the head's outputs, where whoever loads it looks for them
                (folder / "labels.json").write_text(json.dumps(spec.data.labels) + "\n", encoding="utf-8")
            return Candidate(spec, folder, done.curve, findings, figures, run.key, done.compute)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted or refused run leaves nothing behind
        raise


@contextmanager
def recorded(
    home: Home,
    spec: AdapterSpec,
    *,
    name: str,
    tags: Mapping[str, str],
    datasets: Sequence[Dataset],
    workplace: Workplace | None,
    attempt: int = 0,
    parent: str | None = None,
) -> Iterator[Run]:
    """The run in MLflow of one training, which goes on where its workplace has begun it."""
    settings = {"spec": json.dumps(portable(spec)), **flat(portable(spec))}
    with home.tracker.run(
        name=name,
        experiment=spec.task,
        tags=dict(tags),
        params=settings,
        key=workplace.run_key(attempt) if workplace else None,
        parent=workplace.run_key() if workplace and attempt else parent,
    ) as run:
        for data in datasets:
            run.log_dataset(data.record.source, data.digest, data.record.source, context="training")
        yield run


def heard_by(run: Run, name: str) -> dict[str, Any]:
    """Who hears what a training says: its run in MLflow, and people."""

    def show(progress: Progress) -> None:
        note = f"loss {progress.loss:.3f}, {progress.tokens_per_second:,.0f} tokens/s"
        if progress.seconds_left < SOON_SECONDS:
            answers_are_wanted_soon()
        voice.bar(f"training {name}: step", progress.step, progress.steps, progress.seconds_left, note)

    return {
        "on_step": lambda s: run.log_steps(
            [{"step": s.step, "loss": s.loss, "rate": s.rate, "grad_norm": s.grad_norm}]
        ),
        "on_look": lambda look: run.log_steps([point_of(look)]),
        "on_progress": show,
    }


def point_of(look: Look) -> dict[str, float]:
    """A look as MLflow remembers it."""
    score = {} if look.score is None else {"validation_score": look.score}
    return {"step": look.step, "validation_loss": look.loss, **score}


def card_of(spec: AdapterSpec) -> dict[str, Any]:
    """What a server needs beside the weights: how to ask, what the classes are, what the base was quantised to."""
    tree = portable(spec)
    card = {key: tree[key] for key in ("task", "kind", "base", "data", "method", "seed")}
    return {**card, "base_sha256": fingerprint(base_files(base_folder(spec.base)))}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested spec as dotted parameters.

    >>> flat({"method": {"rank": 16}})
    {'method.rank': '16'}
    """
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return found
