"""What binds a version together: one JSON document in the store that names the content of every part.

The artifact's files, the base (weights, tokenizer, chat template: whatever the draft binds), quantisation, head, spec,
code and parents stand in it by their hashes, so one signature over it covers all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from registry.errors import Problem
from registry.fingerprint import FileEntry, canonical, fingerprint
from registry.records import VersionDraft, VersionRecord

MANIFEST = "manifest.json"
REMEDY = "restore the ledger and the store from the same backup"


def binding_of(draft: VersionDraft, files: Sequence[FileEntry]) -> bytes:
    """The document of a draft; the same draft gives the same bytes.

    Raises:
        Unstable: something bound has no stable bytes.
    """
    return canonical(
        {
            **draft.binds,
            "format": 1,
            "name": draft.name,
            "kind": draft.kind,
            "version_key": draft.version_key,
            "artifact": {"digest": draft.artifact, "files": [entry._asdict() for entry in files]},
            "base": {"digest": draft.base, **draft.binds.get("base", {})},
            "code": draft.code,
            "spec": {"digest": fingerprint(draft.spec), "body": draft.spec},
            "parents": [list(parent) for parent in draft.parents],
        }
    )


def binding_problems(version: VersionRecord, folder: Path) -> Iterator[Problem]:
    """Where the document in a verified folder says something else than the ledger."""
    told = json.loads((folder / MANIFEST).read_bytes())
    stands = {
        "name": version.name,
        "kind": version.kind,
        "version_key": version.version_key,
        "artifact": version.artifact,
        "base": version.base,
        "code": version.code,
        "spec": fingerprint(version.spec),
    }
    for field, value in stands.items():
        found = told[field]["digest"] if isinstance(told.get(field), dict) else told.get(field)
        if found != value:
            wrong = f"its manifest says {str(found)[:64]!r}, the ledger {value[:64]!r}"
            yield Problem("E-LEDGER-111", f"{version.ref} {field}", wrong, REMEDY)
