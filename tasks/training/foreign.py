"""Curves that were made elsewhere, as ours: the `trainer_state.json` of Hugging Face's Trainer; torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import ArtifactRefused, FactoryError
from tasks.training.curve import Curve, Look, Step

STATE_FILE = "trainer_state.json"
LARGEST_BYTES = 200_000_000
LARGEST_STEP, LARGEST_FIGURE = 10**12, 1e40  # above all that float32 holds; sums and pictures of them stay finite
NO_RUN = "name a curve that a training has logged"
SCORES = ("eval_accuracy", "eval_mean_token_accuracy")  # as examples of Trainer and SFTTrainer name them


def read_trainer_state(path: Path) -> Curve:
    """The curve in a `trainer_state.json`, or in the newest one under a folder of checkpoints.

    Entries of `log_history` with a `loss` are steps, those with an `eval_loss` are looks at the validation rows (with
    their accuracy, if it was logged). What was not logged (an older Trainer has no gradient norm) is not a number here
    and is left out of the reading.

    Raises:
        ArtifactRefused: there is none, or it holds no curve.
    """
    if path.is_dir():
        found = sorted(path.rglob(STATE_FILE), key=lambda file: (_step_of(file), str(file)))
        if not found:
            raise _refused(path, f"holds no {STATE_FILE}", "name the file, or its folder")
        path = found[-1]
    try:
        size = path.stat().st_size
        told = json.loads(path.read_text(encoding="utf-8")) if size <= LARGEST_BYTES else {}
    except OSError as error:
        raise _refused(path, f"cannot be read: {(error.strerror or 'no reason given').lower()}") from error
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"is no {STATE_FILE}: it holds no JSON") from error
    if size > LARGEST_BYTES:
        raise _refused(path, f"has {size:,} bytes, more than the {LARGEST_BYTES:,} that are read")
    history = told.get("log_history") if isinstance(told, dict) else None
    if not isinstance(history, list):
        raise _refused(path, f"is no {STATE_FILE}: it holds no list `log_history`")
    entries = [entry for entry in history if isinstance(entry, dict) and type(entry.get("step")) is int]
    try:
        steps, looks = _curve_in(entries)
        planned = int(told.get("max_steps") or max((step.step for step in steps), default=0))
    except (ValueError, TypeError, OverflowError) as error:
        raise _refused(path, "holds a loss, rate, norm or number of steps that is no number") from error
    if not steps:
        raise _refused(path, "logged no loss", "train with logging_steps=1")
    norms_known = all(entry.get("grad_norm") is not None for entry in entries if "loss" in entry)
    curve = Curve(steps, looks, planned, norms_known=norms_known, may_skip=True)
    refuse_unbelievable(curve, path)
    return curve


def refuse_unbelievable(curve: Curve, where: Path | str) -> None:
    """A curve from elsewhere may hold any number. Infinity and what is no number are read as such.

    Raises:
        ArtifactRefused: a step or a figure of it is out of all bounds.
    """
    points: list[Step | Look] = [*curve.steps, *curve.looks]
    for point in points:
        if not 0 <= point.step <= LARGEST_STEP:
            shown = str(point.step) if abs(point.step) <= LARGEST_STEP else f"of {len(str(abs(point.step)))} digits"
            raise _refused(where, f"holds a step {shown}, not between 0 and {LARGEST_STEP:.0e}", NO_RUN)
        told = (point.loss, point.rate, point.grad_norm) if isinstance(point, Step) else (point.loss, point.score or 0)
        for figure in told:
            if math.isfinite(figure) and abs(figure) > LARGEST_FIGURE:
                wrong = f"holds {figure:.3g} at step {point.step}, beyond {LARGEST_FIGURE:.0e}"
                raise _refused(where, wrong, NO_RUN)


def _curve_in(entries: Sequence[Mapping[str, Any]]) -> tuple[tuple[Step, ...], tuple[Look, ...]]:
    """Steps and looks among the entries."""
    steps = tuple(
        Step(
            step=entry["step"],
            loss=_number(entry["loss"]),
            rate=_number(entry.get("learning_rate")),
            grad_norm=_number(entry.get("grad_norm")),
            tokens=0,
            seconds=0.0,
        )
        for entry in entries
        if "loss" in entry
    )
    looks = tuple(
        Look(entry["step"], _number(entry["eval_loss"]), next((float(entry[n]) for n in SCORES if n in entry), None))
        for entry in entries
        if "eval_loss" in entry
    )
    return steps, looks


def _refused(path: Path | str, wrong: str, remedy: str = "name the file that the Trainer wrote") -> FactoryError:
    return ArtifactRefused.one("E-TRAIN-005", path, wrong, remedy)


def _number(value: Any) -> float:
    """A logged figure; NaN where there is none. The Trainer writes NaN and infinity as JSON words."""
    return float(value) if value is not None else math.nan


def _step_of(path: Path) -> int:
    tail = path.parent.name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0
