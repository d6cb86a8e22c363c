"""The chosen model of a merge: written, registered with its parents, asked in a fresh process, served and exported."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.keep import bound
from flows.learn import threads
from flows.merge_candidates import Setting, updates_of
from flows.merge_parents import Expert, Planned
from flows.places import make_room_for
from flows.policy import cheap
from flows.progress import voice
from flows.promote import made_champion, promoting
from flows.resuming import Workplace
from flows.sealing import sealed
from flows.validate import base_folder
from flows.wiring import Home, flow_run_id
from registry.records import BaseRecord, EvaluationRecord, VersionDraft, VersionRecord
from tasks.errors import ArtifactRefused, SpecRefused
from tasks.export.card import Card, Score
from tasks.merging.catalogue import RULES
from tasks.promotion import Decision
from tasks.specs import MergeSpec


def remembered(
    home: Home,
    spec: MergeSpec,
    experts: Sequence[Expert],
    base: BaseRecord,
    plan: Planned,
    scores: Mapping[str, EvaluationRecord],
    alone: Mapping[str, Mapping[str, EvaluationRecord]],
    chosen: Setting,
    absent: Mapping[str, Mapping[str, float]],
    in_4_bits: Mapping[str, EvaluationRecord],
    workplace: Workplace,
) -> VersionRecord:
    """The chosen model written as a transformers folder, stored, and registered with its parents."""
    if known := home.ledger.by_key(workplace.key):
        return known
    card = card_of(spec, experts, base, scores, alone, chosen)

    def write(folder: Path, key: str) -> None:
        written(spec, experts, plan, chosen, card, folder, key)

    artifact = plan.place.written(home, str(chosen), write)
    version = home.ledger.register(
        VersionDraft(
            name=spec.name,
            kind="merged",
            version_key=workplace.key,
            artifact=artifact,
            base=base.digest,
            code=home.code.digest,
            spec={**spec.model_dump(mode="json"), "chosen": chosen.name, "setting": asdict(chosen)},
            parents=tuple(("parent", e.version.ref) for e in experts),
            metrics={
                **{f"{task}_{found.metric}": found.score for task, found in scores.items()},
                **{f"{task}_{found.metric}_in_4_bits": found.score for task, found in in_4_bits.items()},
                **{
                    f"without_{left}_{task}_kept": share
                    for left, kept in absent.items()
                    for task, share in kept.items()
                },
            },
            evaluations=tuple(scores.values()),
            flow_run=flow_run_id(),
            binds=bound(experts[0].spec, base_folder(experts[0].spec.base), home.store.path(artifact)),
        ),
        lease=workplace.lease,
    )
    voice.say(f"  registered {version.ref}, sha256 {artifact[:12]}")
    return version


def setting_of(version: VersionRecord | None) -> Setting | None:
    """What a version was merged by; None for none."""
    if version is None:
        return None
    said = dict(version.spec["setting"])
    weights = tuple((task, weight) for task, weight in said.pop("weights"))
    return Setting(weights=weights, **said)


def card_of(
    spec: MergeSpec,
    experts: Sequence[Expert],
    base: BaseRecord,
    scores: Mapping[str, EvaluationRecord],
    alone: Mapping[str, Mapping[str, EvaluationRecord]],
    chosen: Setting,
) -> Card:
    """What the exported folder says about itself."""
    return Card(
        name=spec.name,
        kind=experts[0].spec.kind,
        base=f"{base.name}, sha256 {base.digest}",
        lineage={e.version.ref: f"adapter, sha256 {e.version.artifact}" for e in experts},
        recipe={
            "rule": chosen.rule,
            "scale": chosen.scale,
            "density": chosen.density,
            **dict(chosen.weights),
            "seed": spec.seed,
        },
        scores=[
            Score(e.task, s.metric, alone["base"][e.task].score, alone["experts"][e.task].score, s.score, s.n)
            for e in experts
            for s in [scores[e.task]]
        ],
        limits=["Judged on the test rows of the tasks above and on nothing else."],
    )


def written(
    spec: MergeSpec, experts: Sequence[Expert], plan: Planned, chosen: Setting, card: Card, folder: Path, resume: str
) -> None:
    """The chosen model as a plain transformers folder, streamed in row blocks. Classifiers share the body, and each
    task's own head lies beside it. A write that was interrupted goes on from its finished weights."""
    import torch

    from tasks.export.model import export_model
    from tasks.merging.base import open_base
    from tasks.merging.stream import merged_stream

    stored = open_base(plan.base.folder).dtypes
    dtype = (
        max(stored.values(), key=list(stored.values()).count) if spec.dtype == "base" else getattr(torch, spec.dtype)
    )
    heads = plan.parents.heads
    if chosen.rule in RULES:
        weights = dict(chosen.weights)
        changes: Iterable[Any] = merged_stream(
            plan.parents, chosen.rule, weights=weights, density=chosen.density, seed=spec.seed
        )
    else:
        changes = updates_of(spec, experts, plan, chosen).items()
    with threads(spec.resources.threads):
        export_model(
            folder,
            plan.base,
            changes,
            scale=chosen.scale,
            dtype=dtype,
            card=card,
            heads=heads,
            labels={e.task: e.spec.data.labels for e in experts if e.task in heads},
            resume=resume,
        )


@cheap
def answered(home: Home, version: VersionRecord, experts: Sequence[Expert]) -> dict[str, tuple[str, str]]:
    """One request per task, answered by the stored model in a fresh process: task to (request, answer).

    Raises:
        ArtifactRefused: it does not load or does not answer.
    """
    from tasks.export.answer import answer_in_fresh_process

    folder = home.ledger.files(version.ref)
    asked = {e.task: e.slices["test"][-1].examples[0].input for e in experts}
    if experts[0].spec.kind == "classification":  # one body, and the head of the task that is asked
        said = {t: answer_in_fresh_process(folder, [q], kind="classification", head=t)[0] for t, q in asked.items()}
    else:
        said = dict(zip(asked, answer_in_fresh_process(folder, list(asked.values())), strict=True))
    return {task: (request, said[task]) for task, request in asked.items()}


def served(home: Home, version: VersionRecord, decision: Decision) -> bool:
    """The merged model made champion of its name."""
    with promoting(home, version.name) as lease:
        champion = home.ledger.champion(version.name)
        if champion is None or champion.number != version.number:
            made_champion(home, version, decision, champion, lease)
    return True


def refuse_foreign(target: Path) -> None:
    """An export takes the place of nothing, of an empty folder, or of an earlier export as it was written.

    Raises:
        SpecRefused: something else lies there, or nothing can.
    """
    from tasks.export.model import verify_export

    make_room_for(target)
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            verify_export(target)
    except ArtifactRefused:
        wrong = "is there already, and is no exported model or was changed since"
        raise SpecRefused.one("E-MERGE-043", target, wrong, "name another folder") from None


def exported(home: Home, version: VersionRecord, out: str) -> Path:
    """A copy of the stored model where the user wants it; a model that lies there already is replaced whole."""
    target = Path(out)
    staging = target.with_name(f".{target.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        refuse_foreign(target)
        shutil.copytree(home.ledger.files(version.ref), staging, copy_function=shutil.copyfile)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
        sealed(home, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    voice.say(f"  exported to {target}")
    return target
