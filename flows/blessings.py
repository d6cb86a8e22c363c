"""Gates that a spec may ask for beyond right answers: how honest the confidences are, and how long an answer takes.

Both are measured once per version, on its own test rows, and stand in the ledger beside the scores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flows.learn import datasets_of, record_of, slice_of, subject_of, threads
from flows.validate import remembered_dataset
from flows.wiring import Home
from registry.records import EvaluationRecord, VersionRecord
from tasks.data.examples import Example
from tasks.promotion import Gate, answers_in_time, calibrated
from tasks.specs import AdapterSpec, AnswerGateSpec

if TYPE_CHECKING:
    from tasks.training.base import Base

ANSWERED, SECONDS = "answered", "seconds"  # metrics under which the two are remembered
MOST_ROWS = 200


def asked_gates(home: Home, version: VersionRecord, spec: AdapterSpec) -> list[Gate]:
    """Calibration and latency, if the spec asks for them."""
    gates = spec.evaluation.gates
    if not gates.asks_of_answers:
        return []
    said, seconds = measured(home, version, spec)
    return answer_gates(gates, said.confidences, said.outcomes, seconds.outcomes)


def answer_gates(
    gates: AnswerGateSpec, sure: Sequence[float], right: Sequence[float], seconds: Sequence[float], on: str = ""
) -> list[Gate]:
    """Those of the two gates that are asked for; `on` names one task of several."""
    found = []
    if gates.max_calibration_error is not None:
        found.append(calibrated(sure, right, gates, on))
    if gates.max_answer_seconds is not None:
        found.append(answers_in_time(seconds, gates, on))
    return found


def measured(home: Home, version: VersionRecord, spec: AdapterSpec) -> tuple[EvaluationRecord, EvaluationRecord]:
    """Whether each answer was right and how sure the model was; and how long each took, asked one by one."""
    known = {e.metric: e for e in home.ledger.evaluations(version.ref)}
    if ANSWERED in known and SECONDS in known:
        return known[ANSWERED], known[SECONDS]
    from tasks.evaluation.scoring import Scores
    from tasks.methods.build import attached
    from tasks.training.base import load_base

    where = slice_of(spec, remembered_dataset(home, datasets_of(version)[0]))
    rows = where.examples[:MOST_ROWS]
    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
    with threads(spec.resources.threads), attached(base, home.ledger.files(version.ref)) as model:
        sure, right, seconds = one_by_one(base, model, rows)
    keys = tuple(row.key for row in rows)
    told = replace(record_of(Scores(ANSWERED, keys, right), where), confidences=sure)
    took = record_of(Scores(SECONDS, keys, seconds), where)
    found = home.ledger.remember_evaluations([subject_of(told, version.ref), subject_of(took, version.ref)])
    return found[0], found[1]


def one_by_one(
    base: Base, model: Any, rows: Sequence[Example]
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """(confidence, whether it was right, seconds) of each answer, asked for alone."""
    from tasks.evaluation.scoring import answers

    longest = max(len(base.tokenizer(row.target)["input_ids"]) for row in rows) + 8
    answers(base, model, [rows[0].input], max_new_tokens=longest)  # what only the first one pays is not measured
    said, seconds = [], []
    for row in rows:
        began = time.perf_counter()
        said += answers(base, model, [row.input], max_new_tokens=longest)
        seconds.append(time.perf_counter() - began)
    right = tuple(float(a.text.strip() == row.target.strip()) for a, row in zip(said, rows, strict=True))
    return tuple(min(1.0, answer.confidence) for answer in said), right, tuple(seconds)
