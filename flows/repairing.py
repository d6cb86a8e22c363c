"""A run whose curve names a fault is repaired: one change, another run, within a budget; the best one is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flows.learn import Candidate, Slice, scored
from flows.progress import voice
from flows.resuming import Workplace
from flows.teach import Unfit, trained
from flows.validate import Dataset
from flows.wiring import Home
from tasks.data.examples import Example
from tasks.specs import AdapterSpec
from tasks.training.diagnosis import Finding
from tasks.training.repair import next_repair


def trained_well(
    home: Home,
    asked: AdapterSpec,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    name: str,
    tags: Mapping[str, str],
    datasets: Sequence[Dataset],
    workplace: Workplace,
    fits: Callable[[AdapterSpec], bool],
    start: Path | None = None,
    spent_seconds: float = 0.0,
) -> Candidate:
    """The run that was asked for, and up to `repair.attempts` more; the one with the best score on the validation rows.

    Each further run is a child of the first in MLflow and says there why it was made. The test rows are not looked at.

    Args:
        fits: whether a repair fits the base and the memory, planned as the run was.
        spent_seconds: what others before it, a retrain's earlier candidates, took of `repair.budget_minutes`.

    Raises:
        Unfit: no attempt came to anything that may be kept.
    """
    kept: list[tuple[tuple[float, float], Candidate]] = []
    tried: list[AdapterSpec] = []
    spec, reason, unfit = asked, "", None
    try:
        for attempt in range(asked.repair.attempts + 1):
            tried.append(spec)
            try:
                candidate = trained(
                    home,
                    spec,
                    train,
                    validation,
                    name=f"{name} repair {attempt}" if attempt else name,
                    tags={**tags, "factory.repair": reason} if attempt else tags,
                    datasets=datasets,
                    start=start,
                    workplace=workplace,
                    attempt=attempt,
                )
            except Unfit as error:
                unfit, findings, seconds = error, error.findings, error.seconds
            else:
                findings, seconds = candidate.findings, candidate.figures["train_seconds"]
                if attempt:
                    told = Finding("repaired", f"attempt {attempt} of {asked.repair.attempts}: {reason}", "")
                    candidate = replace(candidate, findings=(*findings, told))
                kept.append((_standing(spec, validation, candidate), candidate))
            spent_seconds += seconds
            if attempt == asked.repair.attempts:
                break
            repair = next_repair(asked, spec, findings, tried, fits)
            if repair is None:
                break
            if spent_seconds + seconds > 60 * asked.repair.budget_minutes:
                voice.say(f"  no time for a repair within {asked.repair.budget_minutes:g} minutes: {repair.reason}")
                break
            spec, reason = repair.spec, repair.reason
            voice.say(f"  repair {attempt + 1} of {asked.repair.attempts}: {reason}")
    except BaseException:
        _drop(kept)
        raise
    if not kept:
        assert unfit is not None
        raise unfit
    (score, _), best = max(kept, key=lambda pair: pair[0])
    _drop([pair for pair in kept if pair[1] is not best])
    if len(tried) > 1:
        voice.say(f"  the best of {len(tried)} on the validation rows, {asked.metric} {score:.3f}, is kept")
    return best


def _drop(kept: Sequence[tuple[object, Candidate]]) -> None:
    for _, candidate in kept:
        shutil.rmtree(candidate.folder, ignore_errors=True)


def _standing(spec: AdapterSpec, validation: Sequence[Example], candidate: Candidate) -> tuple[float, float]:
    """Score on the validation rows, and minus the loss there, which decides between equals. Bigger is better."""
    best = candidate.curve.best
    loss = best.loss if best else candidate.curve.steps[-1].loss
    if not validation or not spec.repair.attempts:
        return 0.0, -loss
    rows = Slice("validation", "", "validation", tuple(validation))
    return scored(spec, [rows], candidate.folder)["validation"].score, -loss
