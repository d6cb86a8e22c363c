"""What moved, what it cost, and what to do: a verdict rather than an alarm.

The order of the questions: is there enough to judge? is the pipe broken? did near-same inputs get other labels? did the
mix of labels move, and does that alone explain the inputs? did the inputs move? did the score fall with none of these?
"""

from __future__ import annotations

import math

import numpy as np

from tasks.drift.asking import rows_to_label
from tasks.drift.estimate import estimated_score
from tasks.drift.faults import Found, faults_of
from tasks.drift.nearness import foreign_chances
from tasks.drift.observed import Observed
from tasks.drift.paired import Paired, finite, paired
from tasks.drift.permutation import term_divergence
from tasks.drift.reach import gain_in_reach
from tasks.drift.report import Action, DriftReport, Evidence, Verdict
from tasks.drift.signals import SIGNALS, Signal, measured
from tasks.drift.statistics import Fall, Measured, holm, score_fall
from tasks.specs import DriftSpec

CONFIDENCE = 0.95
SCORE_SHARE = 0.5  # of the false alarms, where the score is known: it is what everything else only hints at
SET_ASIDE_LIMIT = 0.2
EXPLAINED = 0.25  # of the words' whole divergence: what may remain within the labels when the mix explains it
MOVED: frozenset[Verdict] = frozenset({"new topic", "label shift", "input shift"})
RENAMED = 0.3  # share of never-seen labels, on inputs that stayed: so many new topics could not hide among the words


def judge(
    reference: Observed,
    window: Observed,
    drift: DriftSpec,
    *,
    seed: int,
    set_aside: int = 0,
    among: int | None = None,
    in_vain: int = 0,
    judgeable: bool = True,
) -> DriftReport:
    """The verdict on `window` against `reference`.

    At most `drift.false_alarm` of quiet windows get a verdict other than "no drift": half of it is the score's, where
    one is known, and the p-values of all available signals share the rest (Holm). A fall of the score asks for a
    retrain when its lower 95 % bound also exceeds `drift.score_drop`; where something else surely moved and no label is
    left to ask for, the measured fall is enough, for the gates stand before a candidate; so it is where the base alone,
    told the window's labels, would surely answer better by that much. `set_aside` counts malformed rows that came
    beside `among` others, by default those of the window; `in_vain` retrains of this adapter that its gates refused: a
    new topic that it cannot take up without losing what it knows asks for an adapter of its own. Where too few requests
    are labelled for a candidate to be `judgeable`, a retrain would be for nothing: labels are asked for instead.

    The same arguments give the same report. Permutation tests draw up to twice as often as the correction needs.

    >>> nothing = Observed((), (), (), (), (), ())
    >>> judge(nothing, nothing, DriftSpec(), seed=0).sentence
    'not enough data: 0 rows in the window, 50 needed; nothing'
    """
    came = (window.rows if among is None else among) + set_aside
    if came >= drift.min_rows and set_aside >= SET_ASIDE_LIMIT * came:
        text = f"of the traffic rows are malformed ({set_aside:,} of {came:,})"
        malformed = Evidence("malformed rows", "share", set_aside / came, SET_ASIDE_LIMIT, None, True, (text,))
        return _unweighed("pipeline fault", "stop and look", reference, window, malformed.sentence, (malformed,))
    for side, seen in (("window", window), ("reference", reference)):
        if seen.rows < drift.min_rows:
            because = f"{seen.rows:,} rows in the {side}, {drift.min_rows:,} needed"
            return _unweighed("not enough data", "nothing", reference, window, because)
    broken = tuple(map(_fault_evidence, faults_of(reference, window, seed=seed)))
    if broken:
        because = "; ".join(one.sentence for one in broken[:2])
        return _unweighed("pipeline fault", "stop and look", reference, window, because, broken)
    return _weighed(paired(reference, window, np.random.default_rng([seed, 0])), drift, seed, in_vain, judgeable)


def _weighed(pair: Paired, drift: DriftSpec, seed: int, in_vain: int, judgeable: bool) -> DriftReport:
    """All signals and the score, corrected together, and what they say about the cause."""
    most = min(20_000, max(199, math.ceil(2 * (len(SIGNALS) + 1) / drift.false_alarm)))
    tried = [
        (signal, measured(signal, pair, np.random.default_rng([seed, 10 + number]), most=most))
        for number, signal in enumerate(SIGNALS)
    ]
    found = [(signal, measure) for signal, measure in tried if measure is not None]
    before, after = finite(pair.reference.outcomes), finite(pair.window.outcomes)
    graded = min(len(before), len(after)) >= drift.min_rows
    fall = score_fall(before.tolist(), after.tolist(), confidence=CONFIDENCE) if graded else None
    p_values = [1.0 if measure.p is None else measure.p for _, measure in found]
    sure = holm(p_values, drift.false_alarm * (1 - SCORE_SHARE) if fall else drift.false_alarm)
    fell = fall is not None and fall.p <= drift.false_alarm * SCORE_SHARE
    moved = [
        signal for (signal, measure), yes in zip(found, sure, strict=True) if yes and measure.value >= signal.material
    ]
    lost = fell and fall is not None and fall.low > drift.score_drop
    told, known = ({signal.tells for signal in signals} for signals in (moved, (signal for signal, _ in found)))
    verdict = _cause(pair, told, known, fell and fall is not None and fall.fall >= drift.score_drop, drift, seed)
    guess = (pair.reference.confidences, pair.reference.outcomes, pair.window.confidences)
    reach = gain_in_reach(pair, seed=seed, least=drift.min_rows) if verdict in MOVED and not lost else None
    promised = reach is not None and reach.low > drift.score_drop
    unlabelled = None in pair.window.labels
    action = _action(verdict, lost or promised, fell, fall, drift, unlabelled=unlabelled)
    if action == "retrain with replay" and not judgeable:
        action = "ask for labels" if unlabelled else "watch"
    if action == "retrain with replay" and verdict == "new topic" and in_vain:
        action = "new adapter"
    return DriftReport(
        verdict=verdict,
        action=action,
        score_reference=float(before.mean()) if fall else None,
        score_window=float(after.mean()) if fall else None,
        drop_low=fall.low if fall else None,
        evidence=(
            *([Evidence("score", "fall", fall.fall, drift.score_drop, fall.p, lost)] if fall else []),
            *(_evidence(signal, measure, pair, signal in moved) for signal, measure in found),
        ),
        n=pair.window.rows,
        graded=len(after),
        n_reference=pair.reference.rows,
        score_estimated=None if fall else estimated_score(*guess, foreign=_foreign(pair), seed=seed),
        to_label=rows_to_label(pair.window) if action == "ask for labels" else (),
        reach=reach,
    )


def _foreign(pair: Paired) -> np.ndarray | None:
    """Each window row's chance of being of a topic that the reference lacks; None where that cannot be told."""
    if not pair.sample.points or pair.window.rows != pair.in_window.sum():
        return None
    sure, points = pair.sample.confidences, np.stack(pair.sample.points)
    if any(value is None or not math.isfinite(value) for value in sure):
        return None
    values, old = np.array(sure, dtype=float), ~pair.in_window
    return foreign_chances(points[old], points[~old], values[old], values[~old])


def _evidence(signal: Signal, measure: Measured, pair: Paired, moved: bool) -> Evidence:
    examples = signal.examples(pair) if moved else ()
    return Evidence(signal.name, signal.statistic, measure.value, signal.material, measure.p, moved, examples)


def _fault_evidence(found: Found) -> Evidence:
    text = f"{found.fault.title} ({found.usual:.0%} in the reference)"
    return Evidence(found.fault.name, "share", found.share, found.fault.limit, None, True, (text,))


def _unweighed(
    verdict: Verdict,
    action: Action,
    reference: Observed,
    window: Observed,
    because: str,
    evidence: tuple[Evidence, ...] = (),
) -> DriftReport:
    return DriftReport(
        verdict,
        action,
        score_reference=None,
        score_window=None,
        drop_low=None,
        evidence=evidence,
        n=window.rows,
        graded=len(finite(window.outcomes)),
        n_reference=reference.rows,
        because=because,
    )


def _cause(pair: Paired, told: set[str], known: set[str], fell: bool, drift: DriftSpec, seed: int) -> Verdict:
    """`told` is what moved, `known` what could be measured; `fell`: the score surely fell, and by as much as counts."""
    if "concept" in told or ("classes" in told and _never_seen(pair) >= RENAMED and told <= {"classes", "labels"}):
        return "concept shift"
    if told & {"classes", "topics"}:
        return "new topic"  # a class that the reference lacks is a topic that it lacks
    mix_moved = "labels" in told or ("answers" in told and "labels" not in known)
    if mix_moved and (told == {"labels"} or _mix_explains_inputs(pair, drift, seed)):
        return "label shift"
    if told & {"inputs", "labels"} or (told and not fell):
        return "input shift"
    return "performance loss" if fell else "no drift"  # inputs as before: other answers are the loss, not its cause


def _never_seen(pair: Paired) -> float:
    """Share of the window's known labels that the reference never had."""
    usual, asked = set(pair.reference.labels), [label for label in pair.window.labels if label is not None]
    return sum(label not in usual for label in asked) / len(asked)


def _mix_explains_inputs(pair: Paired, drift: DriftSpec, seed: int) -> bool:
    """Whether the words within each label stayed as they were, but for a rest: then they moved because the mix did.

    By the known labels where at least half of the window has one; else by the predicted ones, which tell the mix as
    long as the inputs within a label are the same (Lipton et al. 2018, arXiv:1802.03916) but are wrong now and then:
    hence the rest.
    """
    known = [label is not None for label, inside in zip(pair.sample.labels, pair.in_window, strict=True) if inside]
    names = pair.sample.labels if sum(known) >= len(known) / 2 else pair.sample.predictions
    both = {name for name, inside in zip(names, pair.in_window, strict=True) if name is not None and inside}
    both &= {name for name, inside in zip(names, pair.in_window, strict=True) if name is not None and not inside}
    rows = np.array([i for i, name in enumerate(names) if name in both], dtype=np.int64)
    if not pair.in_window[rows].any() or pair.in_window[rows].sum() < pair.in_window.sum() / 2:
        return False
    strata = np.unique([str(names[row]) for row in rows], return_inverse=True)[1]
    bags, marks = pair.bags[0][rows], pair.in_window[rows]
    most = math.ceil(4 / drift.false_alarm)
    within = term_divergence(bags, marks, np.random.default_rng([seed, 3]), most=most, strata=strata)
    overall = term_divergence(bags, marks, np.random.default_rng([seed, 4]), most=99)
    return within.p > drift.false_alarm or within.value < EXPLAINED * overall.value


def _action(
    verdict: Verdict, lost: bool, fell: bool, fall: Fall | None, drift: DriftSpec, *, unlabelled: bool
) -> Action:
    if verdict == "no drift":
        return "watch" if fell else "nothing"
    if verdict == "concept shift":
        return "stop and look"  # replay would teach the old label against the new one: a person must say which holds
    if lost:
        return "retrain with replay"
    if verdict == "performance loss" or (fall is not None and fall.high <= drift.score_drop):
        return "watch"
    if unlabelled:
        return "ask for labels"
    return "retrain with replay" if fall is not None and fall.fall >= drift.score_drop else "watch"
