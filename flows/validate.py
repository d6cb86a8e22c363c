"""The door: a spec's base is identified by content, and its rows become a snapshot that is remembered, or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from flows.data_words import Pace, kept_out, warned_of
from flows.keep import base_files
from flows.known_data import answered, note_answer, question
from flows.policy import cheap
from flows.progress import voice
from flows.publish import publish_validation
from flows.traffic import inbox
from flows.wiring import Home, opened
from registry.fingerprint import fingerprint
from registry.records import BaseRecord, DatasetRecord, Purpose, dataset_ref
from registry.traffic import TrafficStore
from tasks.data.admission import Admission, Around
from tasks.data.chat_templates import ending_check, templated
from tasks.data.door import OnProgress, admit
from tasks.data.examples import Example, example_of, input_columns, target_columns
from tasks.data.guess import is_data, spec_of_file
from tasks.data.snapshot import Snapshot, read_snapshot, write_snapshot
from tasks.drift.traffic import read_traffic
from tasks.errors import DataRefused
from tasks.memory import read_shapes
from tasks.spec_files import load_adapter_spec
from tasks.specs import AdapterSpec, BaseSpec


@dataclass(frozen=True)
class Dataset:
    """A snapshot that is remembered; `admission` says what the door saw, where it was opened in this run."""

    record: DatasetRecord
    snapshot: Snapshot
    admission: Admission | None = None
    around: Around = field(default_factory=Around)

    @property
    def digest(self) -> str:
        return self.record.digest

    @property
    def ref(self) -> str:
        return dataset_ref(self.record.digest)


@flow(name="validate", description="Check a spec's data, quarantine bad rows, and keep the rest as a snapshot.")
def validate(spec_path: str, redact: bool = False) -> Dataset:
    """The snapshot of a spec's data, or of a bare data file, whose columns then say what is asked and answered.

    Args:
        spec_path: The adapter spec, a YAML file; or a data file, or a folder of them.
        redact: Leave the texts of offending rows out of the report.
    """
    home = opened()
    if is_data(spec_path):
        data = validated(home, spec_of_file(spec_path), based=False)
    else:
        spec = load_adapter_spec(spec_path)
        identified(home, spec.base)
        data = validated(home, spec)
    publish_validation(home, data, redact=redact)
    return data


@cheap
def identified(home: Home, spec: BaseSpec) -> BaseRecord:
    """The base by its content: weights, configuration and tokenizer, whatever the folder is called.

    Raises:
        ArtifactRefused: the folder is no base.
        DependencyDown: the hub cannot be reached.
    """
    folder = base_folder(spec)
    digest = fingerprint(base_files(folder))
    shapes = read_shapes(folder)
    architecture = str((shapes.config.get("architectures") or [shapes.config.get("model_type", "unknown")])[0])
    name = folder.name if spec.is_folder else spec.model
    record = BaseRecord(digest, name, spec.revision, architecture, shapes.parameters)
    home.ledger.remember_base(record)
    voice.say(f"  base {name}: {architecture}, {shapes.parameters / 1e6:.1f} M parameters, sha256 {digest[:12]}")
    return record


@cheap
def validated(
    home: Home,
    spec: AdapterSpec,
    purpose: Purpose = "training",
    *,
    based: bool = True,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """The rows of the spec, through the door and into the store; no row that ever judged this task is learned from.

    Where spec, bytes, tokenizer and code are those of a snapshot that is there, that one is taken.

    Args:
        based: count lengths in tokens of the spec's base; else only characters are bounded.
        on_progress: hears the stage, and how many of how many rows are done; the flow's voice by default.

    Raises:
        DataRefused: the rows cannot be trusted.
    """
    traffic = expected_traffic(home, spec) if purpose == "training" and based else {}
    base = base_folder(spec.base) if based else None
    asked = question(home, spec, source_name(spec.data.source), purpose, traffic, base)
    if asked and (answer := answered(home, spec.task, asked)):
        known = replace(remembered_dataset(home, answer.digest), around=answer.around)
        voice.say(f"  data {known.record.source}: nothing has changed since snapshot {known.digest[:12]}")
        told(known)
        return known
    others = [record.digest for record in home.ledger.datasets(spec.task)]
    judged = frozen_examples(home, spec.task)
    on_progress = on_progress or Pace()
    admission = admit(
        spec,
        count_tokens=token_counter(spec.base) if based else None,
        forbidden={example.key: name for example, name in judged},
        judged={example.input: name for example, name in judged},
        traffic=traffic,
        known=[ending_check(base)] if base and spec.kind == "generation" else [],
        on_progress=on_progress,
    )
    on_progress("snapshot", 0, admission.accepted)
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
    record = home.ledger.remember_dataset(record)
    data = Dataset(record, read_snapshot(home.store.path(digest)), admission, admission.around)
    if asked:
        note_answer(home, asked, digest, others, admission.around)
    told(data)
    return data


def told(data: Dataset) -> None:
    """What came in, what became of it, and what to know about it, in a few lines."""
    record, snapshot = data.record, data.snapshot
    counts = ", ".join(f"{count} {side}" for side, count in record.counts.items())
    voice.say(
        f"  data {record.source}: {record.rows_in} rows in = {counts} + {record.quarantined} quarantined"
        f" + {record.deduplicated} deduplicated"
    )
    for line in [*kept_out(snapshot), *warned_of([*snapshot.checks, *data.around.notices])]:
        voice.say(f"    {line}")


def remembered_dataset(home: Home, digest: str) -> Dataset:
    """A snapshot by its digest, verified."""
    return Dataset(home.ledger.dataset(digest), read_snapshot(home.store.path(digest)))


def frozen_examples(home: Home, task: str) -> list[tuple[Example, str]]:
    """All rows that may judge a version of this task, with the slice that each belongs to."""
    known = [remembered_dataset(home, record.digest) for record in home.ledger.datasets(task)]
    return [(e, f"test of {data.digest[:8]}") for data in known for e in data.snapshot.examples("test")]


def expected_traffic(home: Home, spec: AdapterSpec) -> dict[str, str]:
    """Inputs of the task's newest requests, with where they are: taken in, or still in the newest file of its inbox."""
    requests = [
        (event.columns, "the task's traffic")
        for event in TrafficStore(home.ledger.database).newest(spec.task, spec.drift.window_rows)
    ]
    for path in inbox(home, spec.task)[-1:]:
        with suppress(DataRefused):  # `factory watch` says what is wrong with it
            rows = read_traffic(path, inputs=input_columns(spec), now=datetime.now(UTC)).rows
            requests += [(row.columns, path.name) for row in rows]
    unknown = dict.fromkeys((*input_columns(spec), *target_columns(spec)), "")
    return {example_of(spec, {**unknown, **columns}, 0).input: where for columns, where in requests}


def base_folder(spec: BaseSpec) -> Path:
    """The folder of the base; fetched by pinned revision if it is a hub id."""
    from tasks.training.folder import local_folder

    return local_folder(spec)


def token_counter(spec: BaseSpec) -> Callable[[Sequence[str]], list[int]]:
    """Lengths of texts in tokens of this base, with those of its chat template, without loading its weights."""
    from tasks.training.folder import count_tokens

    folder = base_folder(spec)
    return templated(folder, count_tokens(folder))


def source_name(source: str) -> str:
    """What people call a source: the file's own name, for its folder differs from machine to machine."""
    return Path(source).name if Path(source).is_absolute() else source
