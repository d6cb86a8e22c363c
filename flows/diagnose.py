"""A run's curve read again: of an adapter, of a run in MLflow, or of a Trainer's state file made elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.learn import datasets_of
from flows.places import is_there, write_out
from flows.validate import base_folder, remembered_dataset
from flows.wiring import Home
from registry.curves import Points, recorded_points
from registry.records import VersionRecord
from tasks.errors import FactoryError, SpecRefused
from tasks.planning import shapes_of
from tasks.specs import AdapterSpec
from tasks.training.curve import Curve, Look, Step
from tasks.training.diagnosis import Finding, Reach, diagnose
from tasks.training.foreign import read_trainer_state, refuse_unbelievable
from tasks.training.recipe import reach_of

QUIET = ("no drift", "not enough data")


@dataclass(frozen=True)
class Reading:
    """A curve and what it says. `figure` is where its picture lies."""

    name: str
    curve: Curve
    findings: tuple[Finding, ...]
    figure: Path


def reading_of(home: Home, source: str, out: Path | None = None) -> Reading:
    """The reading of `source`: a file or folder of the Trainer's, a run's id, or an adapter (name, name:3, name@alias).

    Raises:
        Unknown: it is none of these.
        ArtifactRefused: the file holds no curve.
    """
    from flows.publish import curve_figure

    path, reach = Path(source), None
    if is_there(path):
        name, curve, ref = path.name, read_trainer_state(path), ""
    else:
        run, ref = source, ""
        if not re.fullmatch(r"[0-9a-f]{32}", source):
            version = home.ledger.version(source)
            if version.run is None:
                wrong = "was made without a run of its own"
                raise SpecRefused.one("E-SPEC-040", version.ref, wrong, "name an adapter that was trained")
            run, ref, reach = version.run, version.ref, known_reach(home, version)
        told, points = recorded_points(home.tracker, run)
        name, curve = ref or told, curve_of(points)
        refuse_unbelievable(curve, name)
    findings = (*diagnose(curve, reach=reach), *(shifts(home, ref) if ref else ()))
    figure = out or home.settings.home / "reports" / f"curve-{re.sub(r'[^a-z0-9]+', '-', name.lower())[:100]}.svg"
    write_out(figure, curve_figure(name, curve, findings))
    return Reading(name, curve, findings, figure)


def known_reach(home: Home, version: VersionRecord) -> Reach | None:
    """What the adapter could change, where its base is still to be had."""
    spec = AdapterSpec.model_validate(version.spec)
    try:
        shapes = shapes_of(base_folder(spec.base))
    except (FactoryError, OSError):
        return None
    rows = sum(remembered_dataset(home, digest).record.counts.get("train", 0) for digest in datasets_of(version)[:1])
    return reach_of(spec, shapes, rows)


def shifts(home: Home, ref: str) -> list[Finding]:
    """What the drift ledger says of an adapter whose curve may be good and whose traffic has moved since."""
    told = [finding for finding in home.ledger.findings(ref.split(":")[0]) if finding.version == ref]
    moved = [finding for finding in told if finding.verdict not in QUIET]
    return [
        Finding("shift", f"traffic window {finding.window_digest[:12]} was judged '{finding.verdict}'", finding.action)
        for finding in moved[-1:]
    ]


def curve_of(points: Points) -> Curve:
    """A curve from the metric points that `flows.teach.trained` writes."""
    losses, rates, norms = (dict(points.get(name, ())) for name in ("loss", "rate", "grad_norm"))
    steps = tuple(
        Step(step, loss, rates.get(step, math.nan), norms.get(step, math.nan), 0, 0.0)
        for step, loss in sorted(losses.items())
    )
    scores = dict(points.get("validation_score", ()))
    looks = tuple(Look(step, loss, scores.get(step)) for step, loss in points.get("validation_loss", ()))
    start, blind = first_of(points, "start_validation_loss"), first_of(points, "blind_loss")
    return Curve(steps, looks, max(losses, default=0), start, blind_loss=blind, norms_known=bool(norms))


def first_of(points: Mapping[str, tuple[tuple[int, float], ...]], name: str) -> float | None:
    return points[name][0][1] if points.get(name) else None


def told(reading: Reading) -> list[str]:
    """The curve in characters, then each finding with its remedy."""
    from tasks.figures.terminal import plotted

    training = [(step.step, step.loss) for step in reading.curve.steps]
    validation = [(look.step, look.loss) for look in reading.curve.looks]
    lines = [reading.name, *plotted(training, validation), "        · training loss, o validation loss", ""]
    for finding in reading.findings:
        lines += [f"{finding.cause}: {finding.evidence}"] + ([f"  -> {finding.remedy}"] if finding.remedy else [])
    return [*lines, f"figure: {reading.figure}"]
