"""One adapter, from a spec to a served version: validate, plan, train, diagnose, evaluate, register, promote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prefect import flow

from flows.keep import refuse_other_kind
from flows.learn import (
    Candidate,
    datasets_of,
    earlier_slices,
    key_of,
    planned,
    registered,
    scored,
    settled,
    slice_of,
    subject_of,
)
from flows.progress import voice
from flows.promote import judged_from_ledger, moved_to_champion, scores_on_tests
from flows.publish import mirrored, publish_training
from flows.repairing import trained_well
from flows.resuming import working_on
from flows.validate import Dataset, identified, validated
from flows.wiring import Home, opened
from registry.records import BaseRecord, EvaluationRecord, VersionRecord, base_ref
from tasks.memory import MemoryPlan
from tasks.promotion import Decision, score_line
from tasks.spec_files import load_adapter_spec
from tasks.specs import AdapterSpec

TAGS = {"factory.flow": "train"}  # of its run in MLflow


@dataclass(frozen=True)
class Prepared:
    """What is known of a spec before it is trained. `spec` is settled, `key` that of its version;
    `fits` plans a repair as the run was planned."""

    spec: AdapterSpec
    base: BaseRecord
    data: Dataset
    plan: MemoryPlan
    key: str
    fits: Callable[[AdapterSpec], bool]


def prepared(home: Home, spec: AdapterSpec) -> Prepared:
    """A spec whose base is known and whose rows have come through the door, and what its run will need.

    Raises:
        FactoryError: whatever refuses it.
    """
    refuse_other_kind(home, spec.task, "adapter")
    base = identified(home, spec.base)
    data = validated(home, spec)
    spec = settled(spec, data)
    known = planned(spec, base, data)
    key = key_of(home, spec, base, made_from=[("dataset", data.digest)], judged_on=[data.digest])
    return Prepared(spec, base, data, known.plan, key, known.fits)


@dataclass(frozen=True)
class TrainOutcome:
    """What one run of the flow came to. `candidate` is None where the same version was there before."""

    version: VersionRecord
    scores: EvaluationRecord
    base_scores: EvaluationRecord
    decision: Decision
    promoted: bool
    candidate: Candidate | None


@flow(name="train", description="Validate, plan, train, diagnose, evaluate, register and promote one adapter.")
def train(spec_path: str, promote: bool = True) -> TrainOutcome:
    """One adapter from a spec; the same spec, data, base and code give the version that is already there.

    Args:
        spec_path: The adapter spec, a YAML file.
        promote: Serve the new version if it passes every gate.
    """
    home, spec = opened(), load_adapter_spec(spec_path)
    voice.say(
        f"{spec.task}: {spec.method.name} of rank {spec.method.rank} on {spec.base.quantization} {spec.base.model}"
    )
    asked = prepared(home, spec)
    spec, base, data, key = asked.spec, asked.base, asked.data, asked.key
    with working_on(home, key) as workplace:
        if known := home.ledger.by_key(key):
            return recalled(home, known, promote)
        learn, choose, test = (
            data.snapshot.examples("train"),
            data.snapshot.examples("validation"),
            slice_of(spec, data),
        )
        slices = [test, *earlier_slices(home, spec, data)]
        with trained_well(
            home,
            spec,
            learn,
            choose,
            name=spec.task,
            tags=TAGS,
            datasets=[data],
            workplace=workplace,
            fits=asked.fits,
        ) as candidate:
            before = scored(spec, [test], None, learn)[test.name]
            scores = scored(spec, slices, candidate.folder)
            after = scores[test.name]
            voice.say(f"  {spec.metric}: base {score_line(before.outcomes)}, adapter {score_line(after.outcomes)}")
            home.ledger.remember_evaluations([subject_of(before, base_ref(base.digest))])
            beside = {"untouched base": before, "adapter": after}
            made_from = [("dataset", data.ref)]
            version = registered(home, key, candidate, base, made_from, list(scores.values()), beside, workplace.lease)
    decision = judged_from_ledger(home, version)
    promoted = promote and moved_to_champion(home, version, decision)
    outcome = TrainOutcome(version, after, before, decision, promoted, candidate)
    publish_training(home, outcome, data, asked.plan)
    mirrored(home)
    return outcome


def recalled(home: Home, version: VersionRecord, promote: bool) -> TrainOutcome:
    """The outcome of a version that was made before, from the ledger; nothing is trained again.

    Where the run that made it did not come to its promotion, this one does; what was served before is left as it is.
    """
    dataset, metric = datasets_of(version)[0], AdapterSpec.model_validate(version.spec).metric
    scores = scores_on_tests(home, version.ref, metric)[dataset]
    before = scores_on_tests(home, base_ref(version.base), metric)[dataset]
    decision = judged_from_ledger(home, version)
    voice.say(f"  {version.ref} was made from the same spec, data, base and code: nothing to train")
    served = version.number in [link.number for link in home.ledger.history(version.name)]
    if promote and not served and moved_to_champion(home, version, decision):
        mirrored(home)
    champion = home.ledger.champion(version.name)
    return TrainOutcome(version, scores, before, decision, champion is not None and champion.ref == version.ref, None)
