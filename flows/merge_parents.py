"""The parents of a merge: experts with the rows they are asked about, their shared base, and how both score alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.learn import Slice, datasets_of, known_scores, record_of, scored, slice_of, subject_of
from flows.merge_place import MergePlace
from flows.policy import cheap
from flows.validate import base_folder, identified, remembered_dataset
from flows.wiring import Home
from registry.fingerprint import version_key
from registry.records import BaseRecord, EvaluationRecord, VersionRecord, base_ref
from tasks.errors import ArtifactRefused, Problem, SpecRefused, raise_if_any
from tasks.evaluation.scoring import Scores
from tasks.specs import SIDES, AdapterSpec, BaseSpec, MergeSpec, Side

if TYPE_CHECKING:
    from tasks.merging.base import BaseWeights
    from tasks.merging.plan import MergePlan


@dataclass(frozen=True)
class Expert:
    """A parent with its spec and the rows that it is asked about, snapshot by snapshot."""

    version: VersionRecord
    spec: AdapterSpec
    slices: Mapping[Side, tuple[Slice, ...]]

    @property
    def task(self) -> str:
        return self.version.name


@dataclass(frozen=True)
class Planned:
    """What is merged: the parents' exact updates, the base that they are added to, and where the work is kept."""

    base: BaseWeights
    parents: MergePlan
    place: MergePlace


def expert(home: Home, ref: str) -> Expert:
    """A parent by reference, with the rows of all the data that it learned from.

    Raises:
        SpecRefused: it is a merged model.
    """
    version = home.ledger.version(ref)
    if version.kind != "adapter":
        raise SpecRefused.one("E-MERGE-040", ref, "is a merged model", "name the adapters it was made from")
    spec = AdapterSpec.model_validate(version.spec)
    known = [remembered_dataset(home, digest) for digest in datasets_of(version)]
    return Expert(version, spec, {side: tuple(slice_of(spec, data, side) for data in known) for side in SIDES})


def same_base(home: Home, experts: Sequence[Expert]) -> BaseRecord:
    """The base that all parents share, as it lies on this machine.

    Raises:
        ArtifactRefused: parents of different bases, or a base folder that changed since.
    """
    first = experts[0]
    remedy = "merge adapters of one base"
    raise_if_any(
        ArtifactRefused,
        [
            Problem(
                "E-MERGE-011", e.version.ref, f"base {e.version.base[:12]} is not {first.version.base[:12]}", remedy
            )
            for e in experts
            if e.version.base != first.version.base or e.spec.base.quantization != first.spec.base.quantization
        ],
    )
    return unchanged(home, first.spec.base, first.version.base)


def unchanged(home: Home, spec: BaseSpec, digest: str) -> BaseRecord:
    """The base as it lies on this machine, if it is still the one of this digest.

    Raises:
        ArtifactRefused: it is not.
    """
    base = identified(home, spec)
    if base.digest != digest:
        wrong = f"has changed: {base.digest[:12]}, the adapters were trained on {digest[:12]}"
        raise ArtifactRefused.one("E-MERGE-042", spec.model, wrong, "restore the base")
    return base


def key_of_merge(home: Home, spec: MergeSpec, experts: Sequence[Expert], base: BaseRecord) -> str:
    """The merged version's key: everything that decides what is chosen and written."""
    return version_key(
        kind="merged",
        spec={"recipe": spec.model_dump(mode="json")},
        base=base.digest,
        parents=[("parent", e.version.artifact) for e in experts],
        evaluation=[s.dataset for e in experts for s in e.slices["test"]],
        code=home.code.digest,
        seed=spec.seed,
    )


@cheap
def planned_merge(home: Home, spec: MergeSpec, experts: Sequence[Expert], place: MergePlace) -> Planned:
    """The parents' exact updates over one base; every mismatch is listed before anything is computed.

    Raises:
        ArtifactRefused: with all of them.
    """
    from tasks.merging.plan import Parent, check_parents

    weights = merged_into(experts[0].spec, spec.merge_base)
    quantization = experts[0].spec.base.quantization
    parents = [
        Parent(e.version.ref, e.task, home.ledger.files(e.version.ref), e.version.base, quantization=quantization)
        for e in experts
    ]
    return Planned(weights, check_parents(parents, weights), place)


def merged_into(spec: AdapterSpec, merge_base: str = "dequantized") -> BaseWeights:
    """The float32 weights that an adapter's update is added to: those of an NF4 base as the adapter saw them, or as
    they are stored."""
    import torch

    from tasks.merging.base import nf4_modules, open_base

    folder = base_folder(spec.base)
    rounded = spec.base.quantization == "nf4" and merge_base == "dequantized"
    as_seen = nf4_modules(folder, spec.kind) if rounded else ()
    return open_base(folder, nf4=as_seen, double_quant=spec.base.double_quant, dtype=torch.float32)


def without(plan: Planned, task: str) -> Planned:
    """The same merge without one parent."""
    from tasks.merging.plan import check_parents

    parents = [parent for parent in plan.parents.parents if parent.task != task]
    return Planned(plan.base, check_parents(parents, plan.base), plan.place)


def before_and_alone(home: Home, experts: Sequence[Expert], side: Side) -> dict[str, dict[str, EvaluationRecord]]:
    """The untouched base and each expert alone, per task; what the ledger knows is not measured again."""
    found: dict[str, dict[str, EvaluationRecord]] = {"base": {}, "experts": {}}
    for e in experts:
        for who, subject, adapter in (
            ("base", base_ref(e.version.base), None),
            ("experts", e.version.ref, home.ledger.files(e.version.ref)),
        ):
            known = known_scores(home, subject, e.slices[side], e.spec.metric)
            missing = [s for s in e.slices[side] if s.dataset not in known]
            if missing:
                learned = [x for s in e.slices["train"] for x in s.examples]
                measured = scored(e.spec, missing, adapter, learned)
                home.ledger.remember_evaluations([subject_of(m, subject) for m in measured.values()])
                known |= {m.dataset: m for m in measured.values()}
            found[who][e.task] = pooled([known[s.dataset] for s in e.slices[side]])
    return found


def dense_base(expert: Expert) -> Any:
    """The base as float32 weights, to put updates on; 4-bit weights would round them away."""
    from tasks.training.base import load_base

    spec = expert.spec
    dense = spec.base.model_copy(update={"quantization": "none", "compute_dtype": "float32"})
    return load_base(dense, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)


def pooled(records: Sequence[EvaluationRecord]) -> EvaluationRecord:
    """The scores on several slices as one, named by the first slice; a row that is in two of them counts once."""
    if len(records) == 1:
        return records[0]
    rows = {key: outcome for record in records for key, outcome in zip(record.keys, record.outcomes, strict=True)}
    where = Slice("", records[0].dataset, records[0].side, ())  # type: ignore[arg-type]
    return record_of(Scores(records[0].metric, tuple(rows), tuple(rows.values())), where)
