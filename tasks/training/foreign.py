"""Curves that were made elsewhere, as ours: the `trainer_state.json` of Hugging Face's Trainer; torch-free."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tasks.errors import ArtifactRefused
from tasks.training.curve import Curve, Look, Step

STATE_FILE = "trainer_state.json"
LARGEST_BYTES = 200_000_000
SCORES = ("eval_accuracy", "eval_mean_token_accuracy")  # as examples of Trainer and SFTTrainer name them


def read_trainer_state(path: Path) -> Curve:
    """The curve in a `trainer_state.json`, or in the newest one under a folder of checkpoints.

    Entries of `log_history` with a `loss` are steps, those with an `eval_loss` are looks at the validation rows (with
    their accuracy, if it was logged). What
    was not logged (an older Trainer has no gradient norm) is not a number here and is left out of the reading.

    Raises:
        ArtifactRefused: there is none, or it holds no curve.
    """
    if path.is_dir():
        found = sorted(path.rglob(STATE_FILE), key=lambda file: (_step_of(file), str(file)))
        if not found:
            raise ArtifactRefused.one("E-TRAIN-005", path, f"holds no {STATE_FILE}", "name the file, or its folder")
        path = found[-1]
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many")
        told = json.loads(path.read_text(encoding="utf-8"))
        history = [entry for entry in told["log_history"] if isinstance(entry.get("step"), int)]
        steps = tuple(
            Step(
                step=entry["step"],
                loss=_number(entry["loss"]),
                rate=_number(entry.get("learning_rate")),
                grad_norm=_number(entry.get("grad_norm")),
                tokens=0,
                seconds=0.0,
            )
            for entry in history
            if "loss" in entry
        )
        looks = tuple(
            Look(
                entry["step"], _number(entry["eval_loss"]), next((float(entry[n]) for n in SCORES if n in entry), None)
            )
            for entry in history
            if "eval_loss" in entry
        )
        planned = int(told.get("max_steps") or max((step.step for step in steps), default=0))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        wrong = f"is no {STATE_FILE}: {type(error).__name__} {error}"[:200]
        raise ArtifactRefused.one("E-TRAIN-005", path, wrong, "name the file that the Trainer wrote") from error
    if not steps:
        raise ArtifactRefused.one("E-TRAIN-005", path, "logged no loss", "train with logging_steps=1")
    return Curve(steps, looks, planned)


def _number(value: Any) -> float:
    """A logged figure; NaN where there is none. The Trainer writes NaN and infinity as JSON words."""
    return float(value) if value is not None else math.nan


def _step_of(path: Path) -> int:
    tail = path.parent.name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0
