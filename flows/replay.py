"""What a retrain learns from: fresh rows that do not lean on the test, and a replay of all that was learned before."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from flows.fresh import judging_rows, judging_share
from flows.learn import datasets_of
from flows.progress import voice
from flows.validate import Dataset, frozen_examples, remembered_dataset
from flows.wiring import Home
from registry.records import VersionRecord
from tasks.data.examples import Example, example_of, input_columns, target_columns
from tasks.drift.apart import near_rows
from tasks.drift.outdated import outdated_labels
from tasks.drift.traffic import TrafficRow
from tasks.errors import SpecRefused
from tasks.specs import SIDES, AdapterSpec, Side, SplitSpec, moment_of

NEW_CLASS_ROWS = 10  # labelled requests of a class that the champion does not know, for it to be learned
CHOOSING = 0.1  # share of the fresh rows that choose the best look, where the task's own spec does not ask for fewer
REPEATED_REQUESTS = 0.5  # share of the traffic that may repeat what was asked before, and is left out


def asked_spec(
    home: Home,
    champion: VersionRecord,
    source: str,
    rows: Sequence[TrafficRow],
    replay_share: float | None = None,
    start: str | None = None,
    expected: float | None = None,
) -> AdapterSpec:
    """The champion's spec over the new source, whose rows are split by hash like all others.

    What is nearly a row that judges is kept out, and that a request comes again is no fault of the traffic. How it is
    taught is as the task's own spec says: that an earlier retrain had to begin at the base, or to replay more, is no
    reason to do so again.

    Args:
        rows: the labelled ones of the source.
        expected: the gain that the retrain is to bring; the greater it is, the fewer rows show it.
    """
    spec = AdapterSpec.model_validate(champion.spec)
    if champion.kind != "adapter":
        raise SpecRefused.one("E-SPEC-020", champion.ref, "is a merged model", "retrain its parents, then merge again")
    usual = first_asked(home, champion)
    classes = newcomers(spec, rows) if start != "champion" else ()
    blank = dict.fromkeys((*input_columns(spec), *target_columns(spec)), "")
    keys = {example_of(spec, {**blank, **row.columns}, 0).key for row in rows}
    judging = judging_share(keys, judging_rows(len(keys), spec.evaluation.gates, expected))
    data = spec.data.model_copy(
        update={
            "source": source,
            "revision": None,
            "query": None,
            "where": {},
            "labels": (*spec.data.labels, *classes),
            "split": SplitSpec(validation=min(CHOOSING, usual.data.split.validation), test=judging),
            "near": spec.data.near.model_copy(update={"leaks": "quarantine"}),
            "max_quarantined": max(spec.data.max_quarantined, REPEATED_REQUESTS),
            # one long message of a customer is no reason not to learn from the others
            "overlong": "drop" if spec.data.overlong == "refuse" else spec.data.overlong,
        }
    )
    how: dict[str, object] = {
        "outdated": spec.retrain.outdated,
        "through": max((row.time for row in rows if row.time), default=None),
        "replay_share": usual.retrain.replay_share if replay_share is None else replay_share,
        "start": "base" if classes else start or usual.retrain.start,
    }
    retrain = usual.retrain.model_copy(update=how)
    return spec.model_copy(update={"data": data, "training": usual.training, "retrain": retrain})


def first_asked(home: Home, champion: VersionRecord) -> AdapterSpec:
    """The spec that somebody wrote, of the version with which a champion's retrains began."""
    while previous := dict(champion.parents).get("previous"):
        champion = home.ledger.version(previous)
    return AdapterSpec.model_validate(champion.spec)


def apart(home: Home, spec: AdapterSpec, fresh: Dataset, side: Side) -> list[Example]:
    """The rows of one side that are not nearly a row which judges any version of the task, held against every one."""
    rows = fresh.snapshot.examples(side)
    frozen = [example.input for example, _ in frozen_examples(home, spec.task)]
    near = near_rows([row.input for row in rows], frozen, spec.data.near.similarity)
    if near:
        voice.say(f"  {len(near)} {side} rows are nearly rows that judge, and are left out")
    return [row for place, row in enumerate(rows) if place not in near]


def newcomers(spec: AdapterSpec, rows: Sequence[TrafficRow]) -> tuple[str, ...]:
    """Classes that the champion's head has no place for, and that the traffic holds often enough to be learned."""
    if spec.kind != "classification" or not spec.data.labels:
        return ()
    counts = Counter(row.columns.get(spec.data.label, "") for row in rows)
    new = tuple(sorted(name for name in counts if name and name not in spec.data.labels))
    enough = tuple(name for name in new if counts[name] >= NEW_CLASS_ROWS)
    if enough:
        voice.say(
            f"  {len(enough)} new classes ({', '.join(enough[:5])}): a wider head, so a fresh adapter on the base"
        )
    return enough


def moment_asked(text: str | None) -> datetime | None:
    """
    Raises:
        SpecRefused: the text is no ISO 8601 date or time.
    """
    try:
        return moment_of(text) if text else None
    except ValueError:
        raise SpecRefused.one(
            "E-SPEC-014", "--labels-changed", f"{text!r} is no date or time", "write 2026-03-01 or 2026-03-01T12:00Z"
        ) from None


def relabelled(spec: AdapterSpec, fresh: Dataset, known: Sequence[Dataset], start: str | None) -> AdapterSpec:
    """The spec that remembers which labels of which earlier data sets hold no longer, by what the fresh rows say.

    The champion has learned the opposite of these, so a fresh adapter on the base is the shorter way unless `start` was
    asked for.
    """
    news = [(e.input, e.target) for e in fresh.snapshot.examples("train")]
    outdated = dict(spec.retrain.outdated)
    for data in known:
        names = outdated_labels([(e.input, e.target) for e in data.snapshot.examples("train")], news)
        if names:
            outdated[data.digest] = tuple(sorted({*outdated.get(data.digest, ()), *names}))
            shown = ", ".join(sorted(name.strip() for name in names))
            voice.say(f"  {data.ref}: its rows of {shown} are neither replayed nor judged on any more")
    changed = {"outdated": outdated, "start": start or ("base" if outdated else spec.retrain.start)}
    return spec.model_copy(update={"retrain": spec.retrain.model_copy(update=changed)})


def in_force(spec: AdapterSpec, data: Dataset, side: Side) -> list[Example]:
    """The rows of one side of an earlier data set whose label still holds."""
    outdated = spec.retrain.outdated.get(data.digest, ())
    return [example for example in data.snapshot.examples(side) if example.target not in outdated]


def all_replayed(home: Home, spec: AdapterSpec, champion: VersionRecord, fresh: Dataset) -> float:
    """The share of the training rows that all that the champion learned from would be: more cannot be replayed."""
    known = [remembered_dataset(home, digest) for digest in datasets_of(champion)]
    everything = spec.model_copy(update={"retrain": spec.retrain.model_copy(update={"replay_share": 1.0})})
    count = len(replayed(everything, fresh, known))
    return count / (count + len(fresh.snapshot.examples("train")))


def filled_up(spec: AdapterSpec, fresh: Dataset, known: Sequence[Dataset]) -> AdapterSpec:
    """The spec with a share that replays `retrain.replay_rows`, if there are so many: where rows are few, leaving old
    ones out saves little and forgets.

    Not where somebody asked for none, nor where the number of steps is fixed, which more rows would have to share.
    """
    count, asked = len(fresh.snapshot.examples("train")), spec.retrain
    if not 0 < asked.replay_share < 1 or not count or spec.training.steps is not None:
        return spec
    everything = spec.model_copy(update={"retrain": asked.model_copy(update={"replay_share": 1.0})})
    rows = min(len(replayed(everything, fresh, known)), asked.replay_rows)
    share = max(asked.replay_share, rows / (rows + count))
    return spec.model_copy(update={"retrain": asked.model_copy(update={"replay_share": share})})


def passed_over(spec: AdapterSpec, fresh: Dataset, known: Sequence[Dataset]) -> AdapterSpec:
    """The spec with as many epochs as make a fresh adapter's `retrain.least_steps`, if it has fewer.

    What a recipe calls an epoch was chosen for the task's first rows; on a few hundred, more iterations than the usual
    ones are what fine-tuning lacks (Zhang et al. 2021, arXiv:2006.05987, section 6).
    """
    training = spec.training
    if spec.retrain.start != "base" or training.steps is not None:
        return spec
    rows = len(fresh.snapshot.examples("train")) + len(replayed(spec, fresh, known))
    epochs = spec.retrain.least_steps / math.ceil(rows / training.batch_size)
    longer = training.model_copy(update={"epochs": max(training.epochs, epochs)})
    return spec.model_copy(update={"training": longer})


def replayed(spec: AdapterSpec, fresh: Dataset, known: Sequence[Dataset]) -> list[Example]:
    """Rows from all that the champion learned from, as many as the share asks for; the same rows every time.

    Drawn by hash, target by target in turn, so that rare answers are replayed as well as frequent ones.
    """
    share = spec.retrain.replay_share
    count = len(fresh.snapshot.examples("train"))
    stock = [example for data in known for example in in_force(spec, data, "train")]
    wanted = round(count * share / (1 - share)) if share < 1 else len(stock)
    seen = {example.key for side in SIDES for example in fresh.snapshot.examples(side)}  # what judges is not learned
    by_target: dict[str, list[Example]] = {}
    for example in sorted(stock, key=lambda e: e.key):
        if example.key not in seen:
            seen.add(example.key)
            by_target.setdefault(example.target, []).append(example)
    chosen: list[Example] = []
    for turn in range(max(map(len, by_target.values()), default=0)):
        chosen += [rows[turn] for _, rows in sorted(by_target.items()) if turn < len(rows)]
        if len(chosen) >= wanted:
            break
    return chosen[:wanted]
