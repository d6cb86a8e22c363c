"""A version of the ledger in the form that a server takes: transformers, PEFT adapter, GGUF or MLflow."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from prefect import flow

from flows.learn import datasets_of
from flows.merge_parents import merged_into, unchanged
from flows.places import make_room_for
from flows.policy import on_gpu
from flows.progress import voice
from flows.sealing import sealed
from flows.validate import base_folder, remembered_dataset
from flows.wiring import Home, opened
from registry.records import VersionRecord
from tasks.errors import SpecRefused
from tasks.export.card import Card
from tasks.merging.catalogue import RULES
from tasks.specs import AdapterSpec

Form = Literal["transformers", "adapter", "gguf", "mlflow"]
PROBES = 4  # requests on which an export is held against its adapter


@dataclass(frozen=True)
class Exported:
    """Where a version was written. `note` says what the form cost, measured; empty if nothing was given up."""

    ref: str
    form: str
    target: Path
    note: str


@flow(name="export", description="Write a version of the ledger in the form that a server takes.")
def export(
    ref: str, form: str = "transformers", out: str = "exported", rank: int | None = None, energy: float | None = None
) -> Exported:
    """Write a version to a new folder or file.

    Args:
        rank: adapter of a merged model: at most this rank; energy: the smallest rank that keeps this share of each
            module's squared norm. One of them, where the merge has no low rank of its own.
    """
    if form not in get_args(Form):
        raise SpecRefused.one(
            "E-EXPORT-007", "--format", f"'{form}' is no format", f"choose of {', '.join(get_args(Form))}"
        )
    home, target = opened(), Path(out)
    version = home.ledger.version(ref)
    if (rank, energy) != (None, None) and (form, version.kind) != ("adapter", "merged"):
        wrong, remedy = "cut the adapter of a merged model, and nothing else", "leave them out, or see `factory trim`"
        raise SpecRefused.one("E-EXPORT-010", "--rank, --energy", wrong, remedy)
    make_room_for(target)
    if target.exists():
        raise SpecRefused.one("E-EXPORT-001", target, "is there already", "name a new folder or file")
    note = written(home, version, form, target, rank, energy)
    sealed(home, target)
    voice.say(f"  {version.ref} as {form} in {target}{': ' + note if note else ''}")
    return Exported(version.ref, form, target, note)


@on_gpu
def written(home: Home, version: VersionRecord, form: str, target: Path, rank: int | None, energy: float | None) -> str:
    """The version in its form, and a sentence about what that cost."""
    if form == "adapter":
        if version.kind == "adapter":
            copied(home, version, target)
            return ""
        return low_rank(home, version, target, rank, energy)
    if version.kind == "merged" and form == "transformers":
        copied(home, version, target)
        return ""
    with model_folder(home, version, target) as (folder, note):
        if form == "gguf":
            from tasks.export.gguf_file import write_gguf

            write_gguf(folder, target, name=version.name)
        elif form == "mlflow":
            from tasks.export.mlflow_model import write_mlflow_model

            write_mlflow_model(folder, target)
        else:
            folder.rename(target)
        return note


@contextmanager
def model_folder(home: Home, version: VersionRecord, target: Path) -> Iterator[tuple[Path, str]]:
    """A transformers folder of the version for as long as the block lasts: the stored one, or the adapter merged into
    its base beside the target, held against the adapter in a fresh process.

    Raises:
        SpecRefused: the version classifies; one body and many heads fit neither form.
        ArtifactRefused: the base has changed since, or the export does not answer as its adapter does.
    """
    if version.kind == "merged":
        refuse_classifiers(home, version, str(home.ledger.version(version.parents[0][1]).spec["kind"]))
        yield home.ledger.files(version.ref), ""
        return
    spec = AdapterSpec.model_validate(version.spec)
    refuse_classifiers(home, version, spec.kind)
    unchanged(home, spec.base, version.base)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging / "model", merged_into_base(home, version, spec, staging / "model")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def merged_into_base(home: Home, version: VersionRecord, spec: AdapterSpec, folder: Path) -> str:
    """One adapter at weight 1 on its base, in float32; how far its logits are off is measured and said."""
    import torch

    from tasks.export.agreement import agreement_in_fresh_process, refuse_unless_agreeing
    from tasks.export.model import export_model
    from tasks.merging.plan import Parent, check_parents
    from tasks.merging.stream import merged_stream

    where, adapter, base = base_folder(spec.base), home.ledger.files(version.ref), merged_into(spec)
    plan = check_parents([Parent(version.ref, version.name, adapter, version.base)], base)
    card = Card(
        name=version.ref,
        kind=spec.kind,
        base=f"sha256 {version.base}",
        lineage={version.ref: f"adapter, sha256 {version.artifact}"},
        limits=["Judged as an adapter on its base; this folder is both together."],
    )
    export_model(folder, base, merged_stream(plan, "task_arithmetic"), dtype=torch.float32, card=card)
    rows = remembered_dataset(home, datasets_of(version)[0]).snapshot.examples("test")[:PROBES]
    asked = [example.input for example in rows]
    difference = agreement_in_fresh_process(
        folder, where, adapter, asked, quantization=spec.base.quantization, double_quant=spec.base.double_quant
    )
    refuse_unless_agreeing(folder, difference, "float32")
    return f"its logits are within {difference:.2g} of the adapter's change"


def low_rank(home: Home, version: VersionRecord, target: Path, rank: int | None, energy: float | None) -> str:
    """A merged model as a plain adapter, computed again from its parents, or from the stored weights where it was
    measured on rows; the largest share of a module's squared norm that was cut off is said.

    Raises:
        SpecRefused: its parents classify, or one of them holds whole new weights, norms or biases.
        ArtifactRefused: the base has changed since.
    """
    from tasks.export.adapter import write_merged_adapter
    from tasks.merging.base import open_base
    from tasks.merging.merge import reduced_differences, reduced_updates
    from tasks.merging.plan import Parent, check_parents

    setting: dict[str, Any] = dict(version.spec.get("setting", {}))
    parents = [home.ledger.version(ref) for role, ref in version.parents if role == "parent"]
    spec = AdapterSpec.model_validate(parents[0].spec)
    refuse_classifiers(home, version, spec.kind)
    unchanged(home, spec.base, version.base)
    base = merged_into(spec, str(version.spec["merge_base"]))
    plan = check_parents([Parent(p.ref, p.name, home.ledger.files(p.ref), p.base) for p in parents], base)
    if whole := [p.ref for p, update in zip(parents, plan.updates, strict=True) if update.replaces]:
        wrong = f"{whole[0]} holds new values of the base's own parameters, for which a plain adapter has no place"
        raise SpecRefused.one("E-EXPORT-008", version.ref, wrong, "export transformers, gguf or mlflow")
    scale, seed = float(setting["scale"]), int(version.spec["seed"])
    if setting["rule"] in RULES:
        weights, density = dict(setting["weights"]), float(setting["density"])
        reduced = reduced_updates(
            plan, setting["rule"], rank=rank, energy=energy, weights=weights, density=density, seed=seed
        )
    else:  # its change is what lies between the stored weights and the base's
        stored = open_base(home.ledger.files(version.ref))
        reduced, scale = reduced_differences(plan, base, stored, rank=rank, energy=energy, seed=seed), 1.0
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        lost = write_merged_adapter(
            staging / "adapter",
            reduced,
            kind=spec.kind,
            base_name=spec.base.model if not spec.base.is_folder else Path(spec.base.model).name,
            scale=scale,
            transposed=plan.transposed,
        )
        (staging / "adapter").rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return f"up to {lost:.2%} of a module's energy was cut off"


def refuse_classifiers(home: Home, version: VersionRecord, kind: str) -> None:
    """
    Raises:
        SpecRefused: the version classifies.
    """
    if kind == "classification":
        wrong = "is a classifier: one body, and a head per task"
        raise SpecRefused.one(
            "E-EXPORT-009", version.ref, wrong, "export a merged one as transformers, or an adapter as it is"
        )


def copied(home: Home, version: VersionRecord, target: Path) -> None:
    """The stored files as they are, whole or not at all."""
    staging = target.with_name(f".{target.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        shutil.copytree(home.ledger.files(version.ref), staging, copy_function=shutil.copyfile)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
