"""A moved task, taught again without forgetting: fresh rows plus replay, and no promotion for what forgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from prefect import flow

from flows.blessings import asked_gates
from flows.claims import claimed
from flows.forgetting import drawn, matrix_of
from flows.fresh import expected_gain, fresh_rows, refuse_too_few, window_file
from flows.learn import (
    Candidate,
    Slice,
    datasets_of,
    key_of,
    known_scores,
    planned,
    record_of,
    registered,
    scored,
    slice_of,
    subject_of,
)
from flows.progress import voice
from flows.promote import moved, promoting
from flows.publish import mirrored, publish_retrain
from flows.repairing import trained_well
from flows.replay import (
    all_replayed,
    apart,
    asked_spec,
    filled_up,
    in_force,
    moment_asked,
    passed_over,
    relabelled,
    replayed,
)
from flows.resuming import working_on
from flows.teach import Unfit
from flows.validate import Dataset, identified, remembered_dataset, validated
from flows.watch import nothing_to_watch
from flows.wiring import Home, opened
from registry.records import EvaluationRecord, LeaseRecord, VersionRecord, base_ref
from tasks.data.examples import Example
from tasks.drift.attempts import gentler, next_attempt
from tasks.drift.kept import Held, kept_slices
from tasks.evaluation.comparison import Interval, gain
from tasks.evaluation.scoring import Scores
from tasks.promotion import Decision, Gate, beats_base, gains_on_fresh, judge
from tasks.specs import AdapterSpec


@dataclass(frozen=True)
class RetrainOutcome:
    """The candidate beside the base and the champion, on the fresh rows and on every earlier frozen slice.

    `scores` maps "base", "champion" and "candidate" to slice names to scores; `fresh` names the new traffic's slice.
    `expected_gain` is what the finding that asked for the retrain promised, to be held against `gain`.
    """

    version: VersionRecord
    champion: VersionRecord
    scores: Mapping[str, Mapping[str, EvaluationRecord]]
    fresh: str
    decision: Decision
    promoted: bool
    expected_gain: float | None = None

    @property
    def gain(self) -> Interval:
        """What the candidate gained over the champion on the fresh rows, with its lower bound."""
        return gain(self.scores["candidate"][self.fresh].outcomes, self.scores["champion"][self.fresh].outcomes)

    @property
    def blame(self) -> str:
        """Whether the untouched base finds the fresh rows harder than the old ones, too: then it is the data."""
        known = {who: [e for name, e in self.scores[who].items() if name != self.fresh] for who in ("base", "champion")}
        if not known["champion"]:
            return ""
        then = {who: sum(e.score * e.n for e in some) / sum(e.n for e in some) for who, some in known.items()}
        now = {who: self.scores[who][self.fresh].score for who in known}
        fell = {who: then[who] - now[who] for who in known}
        if fell["champion"] <= 0:
            return ""
        said = (
            f"the champion fell from {then['champion']:.3f} on the old rows to {now['champion']:.3f} on the fresh ones"
        )
        base = f"the untouched base went from {then['base']:.3f} to {now['base']:.3f}"
        cause = "the rows are harder" if fell["base"] >= fell["champion"] / 2 else "what the champion learned fits less"
        return f"{said}, {base}: {cause}"

    @property
    def kept_promise(self) -> str:
        """What was expected beside what came, on the fresh rows that judge; empty where nothing was promised."""
        if self.expected_gain is None:
            return ""
        came = f"came {self.gain.mean:+.3f} (bound {self.gain.low:+.3f})"
        return f"gain on fresh rows: expected {self.expected_gain:+.3f}, {came}"

    @property
    def sayings(self) -> tuple[str, ...]:
        """What is said of it beside the gates."""
        return tuple(filter(None, (self.blame, self.kept_promise)))


@flow(name="retrain", description="Fresh traffic plus replay, trained, held against the champion on new and old rows.")
def retrain(
    task: str,
    traffic: str | None = None,
    finding: dict[str, Any] | None = None,
    replay_share: float | None = None,
    start: Literal["base", "champion"] | None = None,
    promote: bool = True,
    labels_changed: str | None = None,
) -> RetrainOutcome:
    """A new version of a served task.

    Args:
        task: The task that moved.
        traffic: Labelled traffic (JSONL, CSV or Parquet); by default the newest labelled requests in the store that
            the champion has not met.
        finding: The drift event that asked for this run; one event causes at most one retrain.
        replay_share: Share of the training rows drawn from all that the champion learned from; by default the spec's,
            and more where rows are few.
        start: A fresh adapter on the base, or continue from the champion; the spec's by default.
        promote: Serve the candidate if it passes every gate.
        labels_changed: A person says that like inputs have other labels since this date or time: requests before it are
            not fresh, and earlier rows of these labels are neither replayed nor judged on.

    Raises:
        SpecRefused: `labels_changed` is no date or time.
        DataRefused: too few fresh rows are labelled for a candidate to be judged.
    """
    home = opened()
    champion = home.ledger.champion(task)
    if champion is None:
        raise nothing_to_watch(task, champion)
    since = moment_asked(labels_changed)
    rows, aside = fresh_rows(home, champion, traffic or (finding or {}).get("traffic"), since)
    if promote:  # whoever is not to be served need not be judged
        refuse_too_few(champion, rows, aside)
    expected = (finding or {}).get("expected_gain")
    promised = expected_gain(home, champion) if expected is None else expected
    with claimed(home, champion, finding):
        window = window_file(home, task, rows)
        spec = asked_spec(home, champion, window, rows, replay_share, start, promised)
        fresh = validated(home, spec, purpose="traffic")
        known = [remembered_dataset(home, digest) for digest in datasets_of(champion)]
        if since:
            spec = relabelled(spec, fresh, known, start)
        if replay_share is None:
            spec = filled_up(spec, fresh, known)
        asked_plainly = replay_share is not None or start is not None  # a recipe that somebody chose is not changed
        outcome = best_of(home, spec, champion, fresh, 1 if asked_plainly else spec.retrain.attempts)
        outcome = replace(outcome, promoted=promote and outcome.decision.passed, expected_gain=expected)
        for line in outcome.sayings:
            voice.say(f"  {line}")
        if outcome.promoted:
            with promoting(home, task) as lease:
                moved(home, outcome.version, outcome.decision, champion, lease)
        else:
            voice.say(f"  {outcome.version.ref} is kept, not promoted: {outcome.decision.sentence}")
    publish_retrain(home, outcome)
    mirrored(home)
    return outcome


def best_of(
    home: Home,
    spec: AdapterSpec,
    champion: VersionRecord,
    fresh: Dataset,
    attempts: int,
    clock: Callable[[], float] = time.monotonic,
) -> RetrainOutcome:
    """The first candidate that passes its gates, or the last one: each changes one thing for what was refused, in the
    recipe that its repairs came to. None begins that would, if it took as long as the last, exceed
    `repair.budget_minutes` for all of them and their repairs.

    Args:
        clock: seconds, of which only differences count.

    Raises:
        Unfit: no attempt came to anything that may be kept.
    """
    outcome: RetrainOutcome | None = None
    unfit: Unfit | None = None
    began = now = clock()
    for left in reversed(range(attempts)):
        last = now
        try:
            outcome = attempted(home, spec, champion, fresh, spent_seconds=last - began)
            change, name = None, outcome.version.ref
            if not outcome.decision.passed:
                tried = AdapterSpec.model_validate(outcome.version.spec)
                change = next_attempt(tried, outcome.decision, all_replayed(home, tried, champion, fresh))
        except Unfit as error:
            unfit = error
            change, name = gentler(spec, error.problems[0].wrong), champion.name
        if change is None or not left:
            break
        voice.say(f"  {name} is refused: {change.sentence}")
        now = clock()
        if (now - began) + (now - last) > 60 * spec.repair.budget_minutes:
            voice.say(f"  no time for that within {spec.repair.budget_minutes:g} minutes")
            break
        spec = change.spec
    if outcome is None:
        assert unfit is not None
        raise unfit
    return outcome


def attempted(
    home: Home, spec: AdapterSpec, champion: VersionRecord, fresh: Dataset, spent_seconds: float = 0.0
) -> RetrainOutcome:
    """One candidate: trained, registered and held against base and champion on every slice; not promoted yet.

    Args:
        spent_seconds: what the candidates before it took of the time for repairs.
    """
    task = champion.name
    voice.say(
        f"{task}: retraining {champion.ref} with {spec.retrain.replay_share:.0%} replay, from the {spec.retrain.start}"
    )
    base = identified(home, spec.base)
    known = [remembered_dataset(home, digest) for digest in datasets_of(champion)]
    spec = passed_over(spec, fresh, known)
    replay = replayed(spec, fresh, known)
    old = [e for data in known for e in in_force(spec, data, "validation")] if replay else []
    asked = planned(spec, base, fresh, [*replay, *old])
    slices = [slice_of(spec, fresh, name="fresh"), *(slice_of(spec, data) for data in known)]
    void = {e.key for data in known for e in data.snapshot.examples("test")}
    void -= {e.key for data in known for e in in_force(spec, data, "test")}

    made_from = [
        ("window", fresh.digest),
        *(("replay", data.digest) for data in known),
        ("previous", champion.artifact),
    ]
    key = key_of(home, spec, base, made_from, judged_on=[s.dataset for s in slices])
    with working_on(home, key) as workplace:
        version = home.ledger.by_key(key)
        if version is None:
            learn = [*apart(home, spec, fresh, "train"), *replay]
            choose = [*apart(home, spec, fresh, "validation"), *old]
            adapter = home.ledger.files(champion.ref) if spec.retrain.start == "champion" else None
            tags = {"factory.flow": "retrain", "factory.previous": champion.ref}
            with trained_well(
                home,
                spec,
                learn,
                choose,
                name=f"{task} retrain",
                tags=tags,
                datasets=[fresh, *known],
                start=adapter,
                workplace=workplace,
                fits=asked.fits,
                spent_seconds=spent_seconds,
            ) as candidate:
                version = remembered(home, key, candidate, base, champion, fresh, known, slices, workplace.lease)
    scores = side_by_side(home, spec, version, champion, slices, known, fresh)
    for name in [s.name for s in slices]:
        line = ", ".join(f"{who} {scores[who][name].score:.3f}" for who in scores)
        voice.say(f"  on {name} (n={scores['candidate'][name].n}): {line}")
    decision = judged(spec, version, scores, asked_gates(home, version, spec), void)
    return RetrainOutcome(version, champion, scores, "fresh", decision, False)


def remembered(
    home: Home,
    key: str,
    candidate: Candidate,
    base: Any,
    champion: VersionRecord,
    fresh: Dataset,
    known: Sequence[Dataset],
    slices: Sequence[Slice],
    lease: LeaseRecord | None,
) -> VersionRecord:
    """The candidate registered with its scores and where it came from."""
    own = scored(candidate.spec, slices, candidate.folder)
    parents = [("window", fresh.ref), *(("replay", data.ref) for data in known), ("previous", champion.ref)]
    if candidate.spec.retrain.start == "champion":
        parents.append(("start", champion.ref))
    beside = {f"on {name}": found for name, found in own.items()}
    also = {"candidate": {found.dataset: found.score for found in own.values()}}
    matrix = drawn(
        matrix_of(home, champion.name, candidate.spec.metric, also=also), candidate.spec.evaluation.gates.max_forgetting
    )
    images = {"forgetting.svg": matrix}
    return registered(home, key, candidate, base, parents, list(own.values()), beside, lease, images)


def side_by_side(
    home: Home,
    spec: AdapterSpec,
    version: VersionRecord,
    champion: VersionRecord,
    slices: Sequence[Slice],
    known: Sequence[Dataset],
    fresh: Dataset,
) -> dict[str, dict[str, EvaluationRecord]]:
    """Base, champion and candidate on the same rows; what the ledger does not know yet is measured and remembered."""
    before = AdapterSpec.model_validate(champion.spec)
    learned = [e for data in known for e in data.snapshot.examples("train")]
    learned += [e for e in fresh.snapshot.examples("train") if e.target not in before.data.labels]
    found = {}
    for who, subject, adapter, asked in (
        ("base", base_ref(version.base), None, spec),
        ("champion", champion.ref, champion.artifact, before),
        ("candidate", version.ref, version.artifact, spec),
    ):
        have = known_scores(home, subject, slices, spec.metric)
        missing = [s for s in slices if s.dataset not in have]
        if missing:
            new = scored_or_wrong(asked, missing, home.store.path(adapter) if adapter else None, learned)
            home.ledger.remember_evaluations([subject_of(e, subject) for e in new.values()])
            have |= {e.dataset: e for e in new.values()}
        found[who] = {s.name: have[s.dataset] for s in slices}
    return found


def scored_or_wrong(
    spec: AdapterSpec, slices: Sequence[Slice], adapter: Path | None, learned: Sequence[Example]
) -> dict[str, EvaluationRecord]:
    """Scores on every row; a row of a class that the model's head has no place for is answered wrong."""
    if spec.kind != "classification":
        return scored(spec, slices, adapter, learned)
    known = [replace(s, examples=tuple(e for e in s.examples if e.target in spec.data.labels)) for s in slices]
    found = scored(spec, known, adapter, [e for e in learned if e.target in spec.data.labels])
    scores = {}
    for where in slices:
        right = dict(zip(found[where.name].keys, found[where.name].outcomes, strict=True))
        keys = tuple(example.key for example in where.examples)
        scores[where.name] = record_of(Scores(spec.metric, keys, tuple(right.get(key, 0.0) for key in keys)), where)
    return scores


def judged(
    spec: AdapterSpec,
    version: VersionRecord,
    scores: Mapping[str, Mapping[str, EvaluationRecord]],
    asked: Sequence[Gate] = (),
    void: Collection[str] = (),
) -> Decision:
    """Better where the traffic is now, not worse on any frozen slice, better than the base, and what else is asked.

    `void` are keys of frozen rows whose label holds no longer; a slice of which hardly any row is left proves nothing.
    """
    gates, new, old, base = spec.evaluation.gates, scores["candidate"], scores["champion"], scores["base"]
    gained = gains_on_fresh(new["fresh"].outcomes, old["fresh"].outcomes, gates)
    kept = {}
    for name in (name for name in new if name != "fresh"):
        pairs = zip(new[name].keys, new[name].outcomes, old[name].outcomes, strict=True)
        held = [(now, before) for key, now, before in pairs if key not in void]
        if len(held) >= gates.min_rows or len(held) == new[name].n:
            kept[name] = Held([now for now, _ in held], [before for _, before in held])
    better = beats_base(new["fresh"].outcomes, base["fresh"].outcomes, gates)
    return judge(version.ref, [gained, *kept_slices(kept, gates), better, *asked])
