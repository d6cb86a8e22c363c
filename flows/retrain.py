"""A moved task, taught again without forgetting: fresh rows plus replay, and no promotion for what forgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefect import flow

from flows.blessings import asked_gates
from flows.claims import claim
from flows.forgetting import drawn, matrix_of
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
from flows.merge_stale import stale_merges
from flows.progress import voice
from flows.promote import moved
from flows.publish import mirrored, publish_retrain
from flows.repairing import trained_well
from flows.resuming import working_on
from flows.traffic import labelled_traffic
from flows.validate import Dataset, frozen_examples, identified, remembered_dataset, validated
from flows.watch import nothing_to_watch
from flows.wiring import Home, opened
from registry.records import EvaluationRecord, LeaseRecord, VersionRecord, base_ref
from tasks.data.examples import Example, input_columns
from tasks.drift.apart import near_rows
from tasks.drift.attempts import next_attempt
from tasks.drift.traffic import read_traffic
from tasks.errors import SpecRefused
from tasks.evaluation.comparison import Interval, gain
from tasks.evaluation.scoring import Scores
from tasks.promotion import Decision, Gate, beats_base, gains_on_fresh, judge, keeps_slice
from tasks.specs import AdapterSpec, Side, SplitSpec

NEW_CLASS_ROWS = 10  # labelled requests of a class that the champion does not know, for it to be learned
REPEATED_REQUESTS = 0.5  # share of the traffic that may repeat what was asked before, and is left out


@dataclass(frozen=True)
class RetrainOutcome:
    """The candidate beside the base and the champion, on the fresh rows and on every earlier frozen slice.

    `scores` maps "base", "champion" and "candidate" to slice names to scores; `fresh` names the new traffic's slice.
    """

    version: VersionRecord
    champion: VersionRecord
    scores: Mapping[str, Mapping[str, EvaluationRecord]]
    fresh: str
    decision: Decision
    promoted: bool

    @property
    def gain(self) -> Interval:
        """What the candidate gained over the champion on the fresh rows, with its lower bound."""
        return gain(self.scores["candidate"][self.fresh].outcomes, self.scores["champion"][self.fresh].outcomes)


@flow(name="retrain", description="Fresh traffic plus replay, trained, held against the champion on new and old rows.")
def retrain(
    task: str,
    traffic: str | None = None,
    finding: dict[str, Any] | None = None,
    replay_share: float | None = None,
    start: Literal["base", "champion"] | None = None,
    promote: bool = True,
) -> RetrainOutcome:
    """A new version of a served task.

    Args:
        task: The task that moved.
        traffic: Labelled traffic (JSONL, CSV or Parquet); by default the newest labelled requests in the store.
        finding: The drift event that asked for this run; one event causes at most one retrain.
        replay_share: Share of the training rows drawn from all that the champion learned from; the spec's by default.
        start: A fresh adapter on the base, or continue from the champion; the spec's by default.
        promote: Serve the candidate if it passes every gate.
    """
    home = opened()
    champion = home.ledger.champion(task)
    if champion is None:
        raise nothing_to_watch(task, champion)
    claim(home, champion, finding)
    source = traffic or (finding or {}).get("traffic") or labelled_traffic(home, champion)
    spec = asked_spec(champion, source, replay_share, start)
    fresh = validated(home, spec, purpose="traffic")
    asked_plainly = replay_share is not None or start is not None  # a recipe that somebody chose is not changed
    outcome = attempted(home, spec, champion, fresh)
    for _ in range(0 if asked_plainly else spec.retrain.attempts - 1):
        change = None if outcome.decision.passed else next_attempt(spec, outcome.decision)
        if change is None:
            break
        voice.say(f"  {outcome.version.ref} is refused: {change.sentence}")
        spec = change.spec
        outcome = attempted(home, spec, champion, fresh)
    outcome = replace(outcome, promoted=promote and outcome.decision.passed)
    said_gain(outcome, finding)
    if outcome.promoted:
        moved(home, outcome.version, outcome.decision, champion)
        for mark in stale_merges(home):
            voice.say(f"  {mark.sentence}")
    else:
        voice.say(f"  {outcome.version.ref} is kept, not promoted: {outcome.decision.sentence}")
    publish_retrain(home, outcome)
    mirrored(home)
    return outcome


def attempted(home: Home, spec: AdapterSpec, champion: VersionRecord, fresh: Dataset) -> RetrainOutcome:
    """One candidate: trained, registered and held against base and champion on every slice; not promoted yet."""
    task = champion.name
    voice.say(
        f"{task}: retraining {champion.ref} with {spec.retrain.replay_share:.0%} replay, from the {spec.retrain.start}"
    )
    base = identified(home, spec.base)
    known = [remembered_dataset(home, digest) for digest in datasets_of(champion)]
    planned(spec, base, fresh)
    replay = replayed(spec, fresh, known)
    slices = [slice_of(spec, fresh, name="fresh"), *(slice_of(spec, data) for data in known)]

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
            old = [e for data in known for e in data.snapshot.examples("validation")] if replay else []
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
            ) as candidate:
                version = remembered(home, key, candidate, base, champion, fresh, known, slices, workplace.lease)
    scores = side_by_side(home, spec, version, champion, slices, known, fresh)
    for name in [s.name for s in slices]:
        line = ", ".join(f"{who} {scores[who][name].score:.3f}" for who in scores)
        voice.say(f"  on {name} (n={scores['candidate'][name].n}): {line}")
    decision = judged(spec, version, scores, asked_gates(home, version, spec))
    return RetrainOutcome(version, champion, scores, "fresh", decision, False)


def said_gain(outcome: RetrainOutcome, finding: Mapping[str, Any] | None) -> None:
    """What the finding promised beside what came of it, on the fresh rows that judge."""
    expected = (finding or {}).get("expected_gain")
    if expected is not None:
        promised = f"expected {expected:+.3f}"
        voice.say(f"  gain on fresh rows: {promised}, came {outcome.gain.mean:+.3f} (bound {outcome.gain.low:+.3f})")


def asked_spec(champion: VersionRecord, source: str, replay_share: float | None, start: str | None) -> AdapterSpec:
    """The champion's spec over the new source, whose rows are split by hash like all others.

    What is nearly a row that judges is kept out, and that a request comes again is no fault of the traffic.
    """
    spec = AdapterSpec.model_validate(champion.spec)
    if champion.kind != "adapter":
        raise SpecRefused.one("E-SPEC-020", champion.ref, "is a merged model", "retrain its parents, then merge again")
    classes = newcomers(spec, source) if start != "champion" else ()
    data = spec.data.model_copy(
        update={
            "source": source,
            "revision": None,
            "query": None,
            "where": {},
            "labels": (*spec.data.labels, *classes),
            "split": SplitSpec(validation=0.1, test=0.3),
            "near": spec.data.near.model_copy(update={"leaks": "quarantine"}),
            "max_quarantined": max(spec.data.max_quarantined, REPEATED_REQUESTS),
            # one long message of a customer is no reason not to learn from the others
            "overlong": "drop" if spec.data.overlong == "refuse" else spec.data.overlong,
        }
    )
    asked = {"replay_share": replay_share, "start": "base" if classes else start}
    how = spec.retrain.model_copy(update={name: value for name, value in asked.items() if value is not None})
    return spec.model_copy(update={"data": data, "retrain": how})


def apart(home: Home, spec: AdapterSpec, fresh: Dataset, side: Side) -> list[Example]:
    """The rows of one side that are not nearly a row which judges any version of the task, held against every one."""
    rows = fresh.snapshot.examples(side)
    frozen = [example.input for example, _ in frozen_examples(home, spec.task)]
    near = near_rows([row.input for row in rows], frozen, spec.data.near.similarity)
    if near:
        voice.say(f"  {len(near)} {side} rows are nearly rows that judge, and are left out")
    return [row for place, row in enumerate(rows) if place not in near]


def newcomers(spec: AdapterSpec, source: str) -> tuple[str, ...]:
    """Classes that the champion's head has no place for, and that the traffic holds often enough to be learned."""
    if spec.kind != "classification" or not spec.data.labels:
        return ()
    rows = read_traffic(Path(source), inputs=input_columns(spec), now=datetime.now(UTC)).rows
    counts = Counter(row.columns.get(spec.data.label, "") for row in rows)
    new = tuple(sorted(name for name in counts if name and name not in spec.data.labels))
    enough = tuple(name for name in new if counts[name] >= NEW_CLASS_ROWS)
    if enough:
        voice.say(
            f"  {len(enough)} new classes ({', '.join(enough[:5])}): a wider head, so a fresh adapter on the base"
        )
    return enough


def replayed(spec: AdapterSpec, fresh: Dataset, known: Sequence[Dataset]) -> list[Example]:
    """Rows from all that the champion learned from, as many as the share asks for; the same rows every time.

    Drawn by hash, target by target in turn, so that rare answers are replayed as well as frequent ones.
    """
    share = spec.retrain.replay_share
    count = len(fresh.snapshot.examples("train"))
    wanted = round(count * share / (1 - share)) if share < 1 else sum(len(d.snapshot.examples("train")) for d in known)
    seen = {example.key for example in fresh.snapshot.examples("train")}
    by_target: dict[str, list[Example]] = {}
    for example in sorted((e for d in known for e in d.snapshot.examples("train")), key=lambda e: e.key):
        if example.key not in seen:
            seen.add(example.key)
            by_target.setdefault(example.target, []).append(example)
    chosen: list[Example] = []
    for turn in range(max(map(len, by_target.values()), default=0)):
        chosen += [rows[turn] for _, rows in sorted(by_target.items()) if turn < len(rows)]
        if len(chosen) >= wanted:
            break
    return chosen[:wanted]


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
) -> Decision:
    """Better where the traffic is now, not worse on any frozen slice, better than the base, and what else is asked."""
    gates, new, old, base = spec.evaluation.gates, scores["candidate"], scores["champion"], scores["base"]
    gained = gains_on_fresh(new["fresh"].outcomes, old["fresh"].outcomes, gates)
    kept = [keeps_slice(name, new[name].outcomes, old[name].outcomes, gates) for name in new if name != "fresh"]
    better = beats_base(new["fresh"].outcomes, base["fresh"].outcomes, gates)
    return judge(version.ref, [gained, *kept, better, *asked])
