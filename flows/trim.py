"""A smaller adapter with nearly the same update: cut by SVD, judged again, registered beside the one that it was."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefect import flow

from flows.inspect import adapter_of
from flows.keep import bound, turn_to_make
from flows.learn import LEARNED_OR_JUDGED, earlier_slices, key_of, known_scores, scored, slice_of
from flows.policy import cheap
from flows.progress import voice
from flows.publish import mirrored
from flows.teach import CARD, card_of
from flows.validate import base_folder, identified, remembered_dataset
from flows.wiring import Home, flow_run_id, opened
from registry.records import EvaluationRecord, VersionDraft, VersionRecord
from tasks.errors import ArtifactRefused, SpecRefused
from tasks.specs import AdapterSpec

TRIMMED = "trimmed"  # role of the version that was cut


@dataclass(frozen=True)
class Trimmed:
    """The smaller version beside the one that it was cut from; `lost` is the largest share of a module's energy."""

    version: VersionRecord
    parent: VersionRecord
    rank: int
    parent_rank: int
    lost: float
    scores: EvaluationRecord
    parent_scores: EvaluationRecord


@dataclass(frozen=True)
class Cut:
    """A written adapter that lasts as long as the block in which it is used."""

    folder: Path
    spec: AdapterSpec
    rank: int
    parent_rank: int
    lost: float


@flow(name="trim", description="Cut an adapter to the rank that keeps its update, judge it again and register it.")
def trim(ref: str, energy: float = 0.99) -> Trimmed:
    """A version of the smallest rank that keeps the share `energy` of every module's squared norm.

    The same adapter and energy give the version that is already there. `factory promote` then judges it.
    """
    home = opened()
    parent = adapter_of(home, ref)
    spec = AdapterSpec.model_validate(parent.spec)
    base = identified(home, spec.base)
    if base.digest != parent.base:
        wrong = f"was trained on base {parent.base[:12]}, {spec.base.model} is now {base.digest[:12]}"
        raise ArtifactRefused.one("E-ADAPTER-004", parent.ref, wrong, "restore the base")
    made_from = [link for link in parent.parents if link[0] in LEARNED_OR_JUDGED]
    digest = made_from[0][1].removeprefix("dataset:")
    data = remembered_dataset(home, digest)
    with cut_apart(home, parent, spec, energy) as cut:
        slices = [slice_of(spec, data), *earlier_slices(home, spec, data)]
        here = [(TRIMMED, parent.artifact), *made_from]
        key = key_of(home, cut.spec, base, here, judged_on=[s.dataset for s in slices[:1]])
        with turn_to_make(home, key) as lease:
            if (version := home.ledger.by_key(key)) is None:
                scores = scored(cut.spec, slices, cut.folder)
                version = home.ledger.register(
                    VersionDraft(
                        name=parent.name,
                        kind="adapter",
                        version_key=key,
                        artifact=home.store.put(cut.folder),
                        base=base.digest,
                        code=home.code.digest,
                        spec=cut.spec.model_dump(mode="json"),
                        parents=(*made_from, (TRIMMED, parent.ref)),
                        metrics={"rank": float(cut.rank), "energy_lost": cut.lost},
                        evaluations=tuple(scores.values()),
                        flow_run=flow_run_id(),
                        binds=bound(cut.spec, base_folder(spec.base), cut.folder),
                    ),
                    lease=lease,
                )
        own = known_scores(home, version.ref, slices[:1], spec.metric)[data.digest]
        before = known_scores(home, parent.ref, slices[:1], spec.metric).get(data.digest)
        if before is None:
            before = scored(spec, slices[:1], home.ledger.files(parent.ref))[slices[0].name]
    voice.say(f"  {version.ref}: rank {cut.rank} of {cut.parent_rank}, {cut.lost:.2%} of a module's energy cut off")
    mirrored(home)
    return Trimmed(version, parent, cut.rank, cut.parent_rank, cut.lost, own, before)


@contextmanager
def cut_apart(home: Home, parent: VersionRecord, spec: AdapterSpec, energy: float) -> Iterator[Cut]:
    """The smaller adapter as a plain LoRA folder."""
    staging = Path(tempfile.mkdtemp(dir=home.scratch()))
    try:
        yield cut_by_svd(home, parent, spec, energy, staging / "adapter")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@cheap
def cut_by_svd(home: Home, parent: VersionRecord, spec: AdapterSpec, energy: float, folder: Path) -> Cut:
    """The best approximation of every module's update, all of the largest rank that one of them needs.

    Raises:
        SpecRefused: the method has no rank to cut, or no smaller rank keeps as much.
    """
    from tasks.export.adapter import write_merged_adapter
    from tasks.inspection import CUTTABLE, rankless
    from tasks.merging.factors import reduce_factors
    from tasks.merging.vectors import exact_updates

    if why := rankless(spec.method.name):
        remedy = f"name an adapter of {', '.join(CUTTABLE[:-1])} or {CUTTABLE[-1]}"
        raise SpecRefused.one("E-SPEC-043", parent.ref, why, remedy)
    update = exact_updates(home.ledger.files(parent.ref))
    pairs = {name: found for name in update.modules if (found := update.factors(name)) is not None}
    reduced = {name: reduce_factors(*factors, energy=energy) for name, factors in pairs.items()}
    rank, held = max(part.rank for part in reduced.values()), max(A.shape[0] for _, A in pairs.values())
    if rank >= held:
        wrong = f"no smaller rank than {held} keeps {100 * energy:g}% of every module's update"
        raise SpecRefused.one("E-SPEC-044", parent.ref, wrong, "ask for less with --energy, or keep it as it is")
    name = Path(spec.base.model).name if spec.base.is_folder else spec.base.model
    lost = write_merged_adapter(
        folder, reduced.items(), kind=spec.kind, base_name=name, transposed=update.transposed, head=update.head
    )
    method = spec.method.model_copy(update={"name": "lora", "rank": rank, "alpha": float(rank)})
    smaller = spec.model_copy(update={"method": method})
    (folder / CARD).write_text(json.dumps(card_of(smaller), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if spec.kind == "classification":
        (folder / "labels.json").write_text(json.dumps(spec.data.labels) + "\n", encoding="utf-8")
    return Cut(folder, smaller, rank, held, lost)
