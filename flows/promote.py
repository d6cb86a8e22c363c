"""The served version of a task, moved forward through the gates."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict

from prefect import flow

from flows.blessings import asked_gates
from flows.keep import sole
from flows.learn import answers_when_loaded
from flows.progress import voice
from flows.publish import mirrored, publish_decision
from flows.refresh import told_stale
from flows.wiring import Home, opened
from registry.records import EvaluationRecord, LeaseRecord, PromotionRecord, VersionRecord, base_ref
from tasks.drift.kept import Held, kept_slices
from tasks.errors import GateRefused, SpecRefused
from tasks.promotion import Decision, Gate, beats_base, gains_on_fresh, judge
from tasks.specs import AdapterSpec


@flow(name="promote", description="Hold a registered version against the champion, and serve it if every gate passes.")
def promote(candidate: str) -> PromotionRecord:
    """Serve a version, if it passes.

    Args:
        candidate: The version as name:number, or name for the newest.
    """
    home = opened()
    version = home.ledger.version(candidate)
    if version.kind != "adapter":
        remedy = "run `factory merge` again; `factory rollback` serves an earlier one"
        raise SpecRefused.one("E-SPEC-021", version.ref, "is a merged model, which is judged by its recipe", remedy)
    with promoting(home, version.name) as lease:
        champion = home.ledger.champion(version.name)
        decision = judged_from_ledger(home, version)
        publish_decision(version.ref, decision)
        refuse_unless_passed(decision)
        promotion = moved(home, version, decision, champion, lease)
    mirrored(home)
    return promotion


class Refused(GateRefused):
    """A refusal that knows the gates, for whoever shows them with their figures."""

    decision: Decision | None = None


def refuse_unless_passed(decision: Decision) -> None:
    """
    Raises:
        Refused: one problem per gate that failed, and all gates with their figures.
    """
    try:
        decision.refuse_unless_passed()
    except GateRefused as error:
        refused = Refused(*error.problems)
        refused.decision = decision
        raise refused from None


def promoting(home: Home, name: str) -> AbstractContextManager[LeaseRecord | None]:
    """The turn to judge and move the champion of a name; whoever comes meanwhile waits and judges against what stands
    then."""
    return sole(home, f"promote:{name}", why=f"{name}: a candidate is being judged")


def moved_to_champion(home: Home, version: VersionRecord, decision: Decision) -> bool:
    """Serve a version that passed its gates and is not served already; say why not otherwise."""
    if not decision.passed:
        voice.say(f"  {version.ref} is kept, not promoted: {decision.sentence}")
        return False
    with promoting(home, version.name) as lease:
        champion = home.ledger.champion(version.name)
        if champion is not None and champion.number == version.number:
            return True
        decision = judged_from_ledger(home, version)  # against the champion that stands now
        if not decision.passed:
            voice.say(f"  {version.ref} is kept, not promoted: {decision.sentence}")
            return False
        moved(home, version, decision, champion, lease)
    return True


def moved(
    home: Home,
    version: VersionRecord,
    decision: Decision,
    champion: VersionRecord | None,
    lease: LeaseRecord | None,
) -> PromotionRecord:
    """The second blessing, then the move: the version answers from its stored files in a fresh process.

    Args:
        champion: the version that it was held against.

    Raises:
        ArtifactRefused: it does not load or does not answer.
        Conflict: someone else moved the champion meanwhile, or took the lease.
    """
    answers_when_loaded(home, version)
    return made_champion(home, version, decision, champion, lease)


def made_champion(
    home: Home,
    version: VersionRecord,
    decision: Decision,
    champion: VersionRecord | None,
    lease: LeaseRecord | None,
) -> PromotionRecord:
    """The move itself, of a version that passed its gates and has answered, remembered with both; whichever flow asks
    for it, served merges that contain what was champion are told to be stale.

    Raises:
        Conflict: someone else moved the champion meanwhile, or took the lease.
    """
    promotion = home.ledger.promote(
        version.name,
        version.number,
        expected=champion.number if champion else None,
        decision={"gates": [asdict(gate) for gate in decision.gates], "sentence": decision.sentence},
        actor="factory",
        reason=decision.sentence,
        lease=lease,
    )
    voice.say(f"  {version.ref} is champion: {decision.sentence}, and it answers in a fresh process")
    told_stale(home, version.name)
    return promotion


def judged_from_ledger(home: Home, version: VersionRecord) -> Decision:
    """The gates of a registered version, from the row-by-row outcomes in the ledger."""
    spec = AdapterSpec.model_validate(version.spec)
    gates = spec.evaluation.gates
    own, base = (scores_on_tests(home, subject, spec.metric) for subject in (version.ref, base_ref(version.base)))
    shared = [data for data in own if data in base]
    found: list[Gate] = [
        beats_base(*on_same_rows(own[data], base[data]), gates, on=f"test of {data[:8]}" if len(shared) > 1 else "")
        for data in shared
    ]
    champion = home.ledger.champion(version.name)
    if champion is not None and champion.number != version.number:
        served = scores_on_tests(home, champion.ref, spec.metric)
        held: dict[str, Held] = {}
        made_from = dict(version.parents)
        retrained = made_from.get("previous") == champion.ref
        window = made_from.get("window", "").removeprefix("dataset:") if retrained else ""
        if window:  # on which nobody was scored yet if the retrain was interrupted: then nothing is gained
            both = on_same_rows(own[window], served[window]) if window in own and window in served else ([], [])
            found.append(gains_on_fresh(*both, gates))
        for data in [one for one in scores_on_tests(home, champion.ref) if one != window]:
            name = f"test of {data[:8]}"
            if data in own and data in served:
                held[name] = Held(*on_same_rows(own[data], served[data]))
            else:  # a champion's slice on which the candidate was never scored proves nothing
                found.append(Gate(f"scored on {name}", 0.0, -1.0, 0.0, 0, passed=False))
        found += kept_slices(held, gates)
    found += asked_gates(home, version, spec)
    if not found:
        found.append(Gate("scored on test rows", 0.0, -1.0, 0.0, 0, passed=False))
    return judge(version.ref, found)


def scores_on_tests(home: Home, subject: str, metric: str | None = None) -> dict[str, EvaluationRecord]:
    """The score of a subject over most rows on the test side of each snapshot; by one metric, if it is named."""
    found = [e for e in home.ledger.evaluations(subject) if e.side == "test" and metric in (None, e.metric)]
    return {e.dataset: e for e in sorted(found, key=lambda e: e.n)}


def on_same_rows(new: EvaluationRecord, old: EvaluationRecord) -> tuple[list[float], list[float]]:
    """Outcomes of two subjects on the rows that both were asked, in one order: two specs may judge on more or fewer."""
    before = dict(zip(old.keys, old.outcomes, strict=True))
    pairs = [(now, before[key]) for key, now in zip(new.keys, new.outcomes, strict=True) if key in before]
    return [now for now, _ in pairs], [then for _, then in pairs]
