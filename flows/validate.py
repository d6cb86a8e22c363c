"""The door: a spec's base is identified by content, and its rows become a snapshot that is remembered, or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from prefect import flow

from flows.keep import base_files
from flows.policy import cheap
from flows.progress import voice
from flows.publish import publish_validation
from flows.wiring import Home, opened
from registry.fingerprint import digest_of_file, fingerprint
from registry.records import BaseRecord, DatasetRecord, Purpose, dataset_ref
from tasks.data.admission import Admission, Around, Check
from tasks.data.chat_templates import ending_check, template_tokens
from tasks.data.door import admit
from tasks.data.examples import Example, example_of, input_columns, target_columns
from tasks.data.guess import is_data, spec_of_file
from tasks.data.reading import digest_of
from tasks.data.snapshot import Snapshot, read_snapshot, write_snapshot
from tasks.drift.traffic import read_traffic
from tasks.errors import DataRefused
from tasks.memory import read_shapes
from tasks.spec_files import load_adapter_spec
from tasks.specs import AdapterSpec, BaseSpec

INSPECTORS = ("detect_secrets", "phonenumbers", "py3langid")  # optional: what they find is in the report


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
def validated(home: Home, spec: AdapterSpec, purpose: Purpose = "training", *, based: bool = True) -> Dataset:
    """The rows of the spec, through the door and into the store; no row that ever judged this task is learned from.

    Where spec, bytes, tokenizer and code are those of a snapshot that is there, that one is taken.

    Args:
        based: count lengths in tokens of the spec's base; else only characters are bounded.

    Raises:
        DataRefused: the rows cannot be trusted.
    """
    traffic = expected_traffic(home, spec) if purpose == "training" and based else {}
    asked = question(home, spec, purpose, traffic, based)
    if asked and (known := answered(home, spec.task, asked)):
        voice.say(f"  data {known.record.source}: nothing has changed since snapshot {known.digest[:12]}")
        told(known)
        return known
    others = [record.digest for record in home.ledger.datasets(spec.task)]
    judged = frozen_examples(home, spec.task)
    admission = admit(
        spec,
        count_tokens=token_counter(spec.base) if based else None,
        forbidden={example.key: name for example, name in judged},
        judged={example.input: name for example, name in judged},
        traffic=traffic,
        known=[ending_check(base_folder(spec.base))] if based and spec.kind == "generation" else [],
        on_progress=Pace(),
    )
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


class Pace:
    """Says how far the door is, stage by stage."""

    def __init__(self) -> None:
        self.stage, self.began = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage, self.began = stage, time.monotonic()
        spent = time.monotonic() - self.began
        voice.bar(f"data: {stage}", done, total, spent * (total - done) / done if done else 0.0)


def question(home: Home, spec: AdapterSpec, purpose: str, traffic: Mapping[str, str], based: bool) -> str | None:
    """All that a snapshot depends on beside what judged before, as one digest; None where only reading can tell."""
    source_digest = digest_of(spec.data)
    if source_digest is None:
        return None
    tokenizer = base_folder(spec.base) / "tokenizer.json" if based else None
    data = spec.data.model_dump(mode="json") | {"source": source_name(spec.data.source)}
    return fingerprint(
        {
            "data": data,
            "task": spec.task,
            "kind": spec.kind,
            "metric": spec.metric,
            "purpose": purpose,
            "source": source_digest,
            "tokenizer": digest_of_file(tokenizer) if tokenizer and tokenizer.is_file() else None,
            "traffic": sorted(traffic),
            "code": home.code.digest,
            "inspect": sorted(name for name in INSPECTORS if find_spec(name)),
        }
    )


def answered(home: Home, task: str, asked: str) -> Dataset | None:
    """The snapshot that answered the same question, unless rows that judge have joined the task since."""
    try:
        note = json.loads((home.settings.home / "validated" / f"{asked}.json").read_text("utf-8"))
        digest, others = str(note["dataset"]), {*note["others"]}
        if {record.digest for record in home.ledger.datasets(task)} - {digest} <= others:
            notices = tuple(Check(**{**check, "samples": tuple(check["samples"])}) for check in note["notices"])
            return replace(remembered_dataset(home, digest), around=Around(notices, dict(note["languages"])))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a note that is gone or torn only costs another look at the data
    return None


def note_answer(home: Home, asked: str, digest: str, others: Sequence[str], around: Around) -> None:
    """Remember which snapshot answered, so that the same question is not worked through again."""
    path = home.settings.home / "validated" / f"{asked}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    note = {"dataset": digest, "others": sorted(others), **asdict(around)}
    staging.write_text(json.dumps(note, ensure_ascii=False, default=str) + "\n", "utf-8")
    staging.replace(path)


def kept_out(snapshot: Snapshot) -> list[str]:
    """The quarantine in a few lines: what was wrong, how often, in which rows, and one of the reasons."""
    lines = []
    for line in snapshot.reasons:
        first = line["first"]
        places = ", ".join(str(row["row"]) for row in first[:4]) + (", ..." if line["rows"] > 4 else "")
        name = line["guard"].removeprefix("expect_column_values_to_").replace("_", " ")
        where = f"{name}; {snapshot.row_unit} {places}"
        lines.append(f"{line['rows']} x {line['field']} ({where}): {first[0]['reason'][:100]}")
    return lines


def warned_of(checks: Sequence[Check]) -> list[str]:
    """Warnings, each with its count and its first sample."""
    lines = []
    for check in checks:
        if check.severity == "warning" and not check.passed:
            sample = f", such as {check.samples[0][:160]}" if check.samples else ""
            name = check.name.replace("_", " ")
            lines.append(f"warning: {name}: {check.unexpected:,} of {check.evaluated:,}{sample}")
    return lines


def remembered_dataset(home: Home, digest: str) -> Dataset:
    """A snapshot by its digest, verified."""
    return Dataset(home.ledger.dataset(digest), read_snapshot(home.store.path(digest)))


def frozen_examples(home: Home, task: str) -> list[tuple[Example, str]]:
    """All rows that may judge a version of this task, with the slice that each belongs to."""
    known = [remembered_dataset(home, record.digest) for record in home.ledger.datasets(task)]
    return [(e, f"test of {data.digest[:8]}") for data in known for e in data.snapshot.examples("test")]


def expected_traffic(home: Home, spec: AdapterSpec) -> dict[str, str]:
    """Keys of the requests in the task's newest traffic file, with its name; empty where none can be read."""
    from flows.watch import newest_traffic

    source = newest_traffic(home, spec.task)
    if source is None:
        return {}
    truth = dict.fromkeys((*input_columns(spec), *target_columns(spec)), "")
    try:
        rows = read_traffic(Path(source), inputs=input_columns(spec), now=datetime.now(UTC)).rows
    except DataRefused:  # `factory watch` says what is wrong with it
        return {}
    return {example_of(spec, {**truth, **row.columns}, place).key: Path(source).name for place, row in enumerate(rows)}


def base_folder(spec: BaseSpec) -> Path:
    """The folder of the base; fetched by pinned revision if it is a hub id."""
    from tasks.training.folder import local_folder

    return local_folder(spec)


def token_counter(spec: BaseSpec) -> Callable[[Sequence[str]], list[int]]:
    """A function from texts to their lengths in tokens of this base, without loading its weights.

    A chat template's own tokens are counted with every text.
    """
    from tasks.training.folder import count_tokens

    folder = base_folder(spec)
    count = count_tokens(folder)
    around = template_tokens(folder, count)
    return (lambda texts: [tokens + around for tokens in count(texts)]) if around else count


def source_name(source: str) -> str:
    """What people call a source: the file's own name, for its folder differs from machine to machine."""
    return Path(source).name if Path(source).is_absolute() else source
