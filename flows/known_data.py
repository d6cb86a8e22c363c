"""The same question about data is answered once: which snapshot answered it, and what was told beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from flows.wiring import Home
from registry.fingerprint import digest_of_file, fingerprint
from tasks.data.admission import Around, Check
from tasks.data.reading import digest_of
from tasks.specs import AdapterSpec

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
INSPECTORS = ("detect_secrets", "phonenumbers", "py3langid")  # optional: what they find is told beside a snapshot


@dataclass(frozen=True)
class Answer:
    """The digest of a snapshot, and what depends on more than its rows."""

    digest: str
    around: Around


def question(
    home: Home, spec: AdapterSpec, source: str, purpose: str, traffic: Mapping[str, str], base: Path | None
) -> str | None:
    """All that a snapshot depends on beside what judged before, as one digest; None where only reading can tell."""
    source_digest = digest_of(spec.data)
    if source_digest is None:
        return None
    data = spec.data.model_dump(mode="json") | {"source": source}
    reads = [base / name for name in TOKENIZER_FILES] if base else []
    return fingerprint(
        {
            "data": data,
            "task": spec.task,
            "kind": spec.kind,
            "metric": spec.metric,
            "purpose": purpose,
            "source": source_digest,
            "tokenizer": [digest_of_file(path) if path.is_file() else None for path in reads],
            "traffic": sorted(traffic),
            "code": home.code.digest,
            "inspect": sorted(name for name in INSPECTORS if find_spec(name)),
        }
    )


def answered(home: Home, task: str, asked: str) -> Answer | None:
    """The answer to the same question, unless rows that judge have joined the task since."""
    try:
        note = json.loads((home.settings.home / "validated" / f"{asked}.json").read_text("utf-8"))
        digest, others = str(note["dataset"]), {*note["others"]}
        if {record.digest for record in home.ledger.datasets(task)} - {digest} <= others:
            notices = tuple(Check(**{**check, "samples": tuple(check["samples"])}) for check in note["notices"])
            return Answer(digest, Around(notices, dict(note["languages"])))
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
