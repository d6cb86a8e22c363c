"""The door: a spec's base is identified by content, and its rows become a snapshot that is remembered, or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect import flow

from flows.policy import cheap
from flows.progress import voice
from flows.publish import publish_validation
from flows.wiring import Home, opened
from registry.fingerprint import digest_of_file, fingerprint
from registry.records import BaseRecord, DatasetRecord, Purpose, dataset_ref
from tasks.data.admission import Admission, Quarantined
from tasks.data.door import admit
from tasks.data.snapshot import Snapshot, read_snapshot, write_snapshot
from tasks.memory import read_shapes
from tasks.spec_files import load_adapter_spec
from tasks.specs import AdapterSpec, BaseSpec

BASE_FILES = ("*.safetensors", "config.json", "generation_config.json", "tokenizer*", "*.model", "vocab*", "*.jinja")


@dataclass(frozen=True)
class Dataset:
    """A snapshot that is remembered; `admission` says what the door saw, where it was opened in this run."""

    record: DatasetRecord
    snapshot: Snapshot
    admission: Admission | None = None

    @property
    def digest(self) -> str:
        return self.record.digest

    @property
    def ref(self) -> str:
        return dataset_ref(self.record.digest)


@flow(name="validate", description="Check a spec's data, quarantine bad rows, and keep the rest as a snapshot.")
def validate(spec_path: str) -> Dataset:
    """The snapshot of a spec's data.

    Args:
        spec_path: The adapter spec, a YAML file.
    """
    home, spec = opened(), load_adapter_spec(spec_path)
    identified(home, spec.base)
    data = validated(home, spec)
    publish_validation(home, data)
    return data


@cheap
def identified(home: Home, spec: BaseSpec) -> BaseRecord:
    """The base by its content: weights, configuration and tokenizer, whatever the folder is called.

    Raises:
        ArtifactRefused: the folder is no base.
        DependencyDown: the hub cannot be reached.
    """
    folder = base_folder(spec)
    files = sorted({path for pattern in BASE_FILES for path in folder.glob(pattern) if path.is_file()})
    digest = fingerprint({path.name: digest_of_file(path) for path in files})
    shapes = read_shapes(folder)
    architecture = str((shapes.config.get("architectures") or [shapes.config.get("model_type", "unknown")])[0])
    name = folder.name if spec.is_folder else spec.model
    record = BaseRecord(digest, name, spec.revision, architecture, shapes.parameters)
    home.ledger.remember_base(record)
    voice.say(f"  base {name}: {architecture}, {shapes.parameters / 1e6:.1f} M parameters, sha256 {digest[:12]}")
    return record


@cheap
def validated(home: Home, spec: AdapterSpec, purpose: Purpose = "training") -> Dataset:
    """The rows of the spec, through the door and into the store; no row that ever judged this task is learned from.

    Raises:
        DataRefused: the rows cannot be trusted.
    """
    admission = admit(spec, count_tokens=token_counter(spec.base), forbidden=frozen_rows(home, spec.task))
    staging = Path(tempfile.mkdtemp(dir=home.scratch()))
    try:
        write_snapshot(admission, staging / "snapshot")
        digest = home.store.put(staging / "snapshot")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    record = DatasetRecord(
        digest=digest,
        task=spec.task,
        source=source_name(spec.data.source),
        source_digest=admission.source_digest,
        rows_in=admission.rows_in,
        counts={str(side): count for side, count in admission.counts.items()},
        quarantined=len(admission.quarantined),
        deduplicated=admission.deduplicated,
        purpose=purpose,
    )
    home.ledger.remember_dataset(record)
    counts = ", ".join(f"{count} {side}" for side, count in record.counts.items())
    voice.say(
        f"  data {record.source}: {record.rows_in} rows in = {counts} + {record.quarantined} quarantined"
        f" + {record.deduplicated} deduplicated"
    )
    for line in kept_out(admission):
        voice.say(f"    {line}")
    return Dataset(record, read_snapshot(home.store.path(digest)), admission)


def kept_out(admission: Admission) -> list[str]:
    """The quarantine in a few lines: what was wrong, how often, in which rows, and one of the reasons."""
    groups: dict[tuple[str, str], list[Quarantined]] = {}
    for row in admission.quarantined:
        groups.setdefault((row.guard, row.field), []).append(row)
    lines = []
    for (guard, field), rows in sorted(groups.items(), key=lambda group: -len(group[1])):
        places = ", ".join(str(row.row) for row in rows[:4]) + (", ..." if len(rows) > 4 else "")
        name = guard.removeprefix("expect_column_values_to_").replace("_", " ")
        lines.append(f"{len(rows)} x {field} ({name}; {admission.row_unit} {places}): {rows[0].reason[:100]}")
    return lines


def remembered_dataset(home: Home, digest: str) -> Dataset:
    """A snapshot by its digest, verified."""
    return Dataset(home.ledger.dataset(digest), read_snapshot(home.store.path(digest)))


def frozen_rows(home: Home, task: str) -> dict[str, str]:
    """Keys of all rows that may judge a version of this task, with the slice that each belongs to."""
    known = (remembered_dataset(home, record.digest) for record in home.ledger.datasets(task))
    return {e.key: f"test of {data.digest[:8]}" for data in known for e in data.snapshot.examples("test")}


def base_folder(spec: BaseSpec) -> Path:
    """The folder of the base; fetched by pinned revision if it is a hub id."""
    from tasks.training.folder import local_folder

    return local_folder(spec)


def token_counter(spec: BaseSpec) -> Callable[[Sequence[str]], list[int]]:
    """A function from texts to their lengths in tokens of this base, without loading its weights."""
    from tasks.training.folder import count_tokens

    return count_tokens(base_folder(spec))


def source_name(source: str) -> str:
    """What people call a source: the file's own name, for its folder differs from machine to machine."""
    return Path(source).name if Path(source).is_absolute() else source
