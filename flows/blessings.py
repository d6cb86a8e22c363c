"""Gates that a spec may ask for beyond right answers: how honest the confidences are, and how long an answer takes.

Both are measured once per version, on its own test rows, and stand in the ledger beside the scores.
"""

from __future__ import annotations

import time

from flows.learn import datasets_of, record_of, slice_of, subject_of, threads
from flows.validate import remembered_dataset
from flows.wiring import Home
from registry.records import EvaluationRecord, VersionRecord
from tasks.promotion import Gate, answers_in_time, calibrated
from tasks.specs import AdapterSpec

ANSWERED, SECONDS = "answered", "seconds"  # metrics under which the two are remembered
MOST_ROWS = 200


def asked_gates(home: Home, version: VersionRecord, spec: AdapterSpec) -> list[Gate]:
    """Calibration and latency, if the spec asks for them."""
    gates = spec.evaluation.gates
    if gates.max_calibration_error is None and gates.max_answer_seconds is None:
        return []
    said, seconds = measured(home, version, spec)
    found = []
    if gates.max_calibration_error is not None:
        found.append(calibrated(said.confidences, said.outcomes, gates))
    if gates.max_answer_seconds is not None:
        found.append(answers_in_time(seconds.outcomes, gates))
    return found


def measured(home: Home, version: VersionRecord, spec: AdapterSpec) -> tuple[EvaluationRecord, EvaluationRecord]:
    """Whether each answer was right and how sure the model was; and how long each took, asked one by one."""
    known = {e.metric: e for e in home.ledger.evaluations(version.ref)}
    if ANSWERED in known and SECONDS in known:
        return known[ANSWERED], known[SECONDS]
    from tasks.evaluation.scoring import Scores, answers
    from tasks.methods.build import attached
    from tasks.training.base import load_base

    where = slice_of(spec, remembered_dataset(home, datasets_of(version)[0]))
    rows = where.examples[:MOST_ROWS]
    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
    said, seconds = [], []
    with threads(spec.resources.threads), attached(base, home.ledger.files(version.ref)) as model:
        longest = max(len(base.tokenizer(row.target)["input_ids"]) for row in rows) + 8
        answers(base, model, [rows[0].input], max_new_tokens=longest)  # what only the first one pays is not measured
        for row in rows:
            began = time.perf_counter()
            said += answers(base, model, [row.input], max_new_tokens=longest)
            seconds.append(time.perf_counter() - began)
    keys = tuple(row.key for row in rows)
    right = tuple(float(a.text.strip() == row.target.strip()) for a, row in zip(said, rows, strict=True))
    told = record_of(Scores(ANSWERED, keys, right), where)
    told = EvaluationRecord(**{**vars(told), "confidences": tuple(min(1.0, a.confidence) for a in said)})
    took = record_of(Scores(SECONDS, keys, tuple(seconds)), where)
    found = home.ledger.remember_evaluations([subject_of(told, version.ref), subject_of(took, version.ref)])
    return found[0], found[1]
