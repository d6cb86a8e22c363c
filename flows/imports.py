"""An adapter that was made elsewhere: through the strict door, scored on a spec's test rows, and registered."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow

from flows.keep import base_files, bound, refuse_other_kind, turn_to_make
from flows.learn import earlier_slices, key_of, scored, settled, slice_of, subject_of
from flows.policy import on_gpu
from flows.progress import voice
from flows.publish import mirrored
from flows.validate import base_folder, identified, validated
from flows.wiring import flow_run_id, opened
from registry.records import BaseRecord, EvaluationRecord, VersionDraft, VersionRecord, base_ref
from tasks.data.examples import Example
from tasks.errors import ArtifactRefused
from tasks.methods.arrival import (
    CONFIG,
    WEIGHTS,
    check_effect,
    check_folder,
    check_origin,
    check_values,
    check_weights_file,
    taken,
)
from tasks.spec_files import load_adapter_spec
from tasks.specs import AdapterSpec

JUDGED = "judged"  # the data set of an imported version: it was scored there, and may have learned from anything


@dataclass(frozen=True)
class ImportOutcome:
    """The version, and its scores beside the base's on the same rows."""

    version: VersionRecord
    scores: EvaluationRecord
    base_scores: EvaluationRecord


@flow(name="import", description="Take in an adapter that was made elsewhere: strict door, scores, registration.")
def import_adapter(folder: str, spec_path: str) -> ImportOutcome:
    """A version from a PEFT folder; the same folder, data and base give the version that is already there.

    Args:
        folder: The PEFT folder.
        spec_path: The adapter spec of its task: base, data to judge on, gates. Its method is read from the folder.
    """
    home, asked = opened(), load_adapter_spec(spec_path)
    refuse_other_kind(home, asked.task, "adapter")
    check_folder(Path(folder))
    base = identified(home, asked.base)
    staging = Path(tempfile.mkdtemp(dir=home.scratch()))
    try:
        files = staging / "adapter"
        taken(Path(folder), files)
        passed_the_door(Path(folder), files, asked, base)
        data = validated(home, asked)
        spec = settled(with_method_of(files, asked), data)
        if spec.kind == "classification" and not (files / "labels.json").is_file():
            (files / "labels.json").write_text(json.dumps(spec.data.labels) + "\n", encoding="utf-8")
        test = slice_of(spec, data)
        takes_effect(spec, files, test.examples[:1])
        artifact = home.store.put(files)
        made_from = [(JUDGED, data.digest), ("imported", artifact)]
        key = key_of(home, spec, base, made_from, judged_on=[data.digest])
        with turn_to_make(home, key) as lease:
            before = scored(spec, [test], None, data.snapshot.examples("train"))[test.name]
            scores = scored(spec, [test, *earlier_slices(home, spec, data)], files)
            home.ledger.remember_evaluations([subject_of(before, base_ref(base.digest))])
            version = home.ledger.register(
                VersionDraft(
                    name=spec.task,
                    kind="adapter",
                    version_key=key,
                    artifact=artifact,
                    base=base.digest,
                    code=home.code.digest,
                    spec=spec.model_dump(mode="json"),
                    parents=((JUDGED, data.ref),),
                    evaluations=tuple(scores.values()),
                    flow_run=flow_run_id(),
                    binds=bound(spec, base_folder(spec.base), files) | {"imported": True},
                ),
                lease=lease,
            )
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    voice.say(f"  registered {version.ref}, sha256 {artifact[:12]}; what it learned from is not known")
    mirrored(home)
    return ImportOutcome(version, scores[test.name], before)


def passed_the_door(shown: Path, files: Path, spec: AdapterSpec, base: BaseRecord) -> None:
    """Everything that can be said before a base is loaded; problems name the folder that the user named.

    Raises:
        ArtifactRefused: naming tensor, field or file.
    """
    from tasks.methods.build import read_adapter, read_config

    try:
        check_weights_file(files / WEIGHTS)
        name, folder = spec.base.model, base_folder(spec.base)
        check_origin(shown, name, spec.base.revision, base.digest, base_files(folder))
        read_config(files)
        check_values(files / WEIGHTS, read_adapter(files))
    except ArtifactRefused as refused:
        said = [p._replace(where=p.where.replace(str(files), str(shown))) for p in refused.problems]
        raise ArtifactRefused(*said) from refused


@on_gpu
def takes_effect(spec: AdapterSpec, files: Path, examples: tuple[Example, ...]) -> None:
    """The adapter fits the base key by key and shape by shape, and changes what it says."""
    from tasks.training.base import load_base

    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
    check_effect(base, files, [example.input for example in examples])


def with_method_of(files: Path, spec: AdapterSpec) -> AdapterSpec:
    """The spec with rank, alpha and variant as the folder has them, so that a retrain follows the same recipe."""
    config: dict[str, Any] = json.loads((files / CONFIG).read_bytes())
    if config.get("peft_type") != "LORA":
        return spec
    variant = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    found = {"name": variant, "rank": int(config["r"]), "alpha": float(config["lora_alpha"])}
    return spec.model_copy(update={"method": spec.method.model_copy(update=found)})
