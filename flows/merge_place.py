"""Where a merge in the making keeps what it has found out, so that the same command goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.keep import kept
from flows.progress import voice
from flows.wiring import Home
from registry.durable import make_folders, replace_file
from registry.records import EvaluationRecord
from tasks.errors import ArtifactRefused


@dataclass(frozen=True)
class MergePlace:
    """Scores by setting, task and side; changes that were measured on rows; and the model that is being written.

    Everything in it belongs to one key: recipe, parents, base, judging data, code and seed. Under that key each has a
    name that holds its setting, for a search that has time to try more may choose another one than before.
    """

    folder: Path

    @classmethod
    def of(cls, folder: Path) -> MergePlace:
        """The place in a folder, made where it is not there yet; what is kept there is said."""
        make_folders(folder / "scores")
        place = cls(folder)
        if count := len(list((folder / "scores").glob("*.json"))):
            voice.say(f"  goes on where it was stopped: {count} scores are known")
        return place

    def score(self, name: str, measure: Callable[[], EvaluationRecord]) -> EvaluationRecord:
        """The score of this name, measured if it is not known."""
        path = self.folder / "scores" / f"{hashlib.sha256(name.encode()).hexdigest()}.json"
        if path.is_file():
            known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            rows = {name: tuple(known[name]) for name in ("keys", "outcomes", "confidences")}
            return EvaluationRecord(**{**known, **rows})
        measured = measure()
        replace_file(path, json.dumps(asdict(measured)).encode())
        return measured

    def changes(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The merged change of this name by module, measured if it is not known."""
        from safetensors.torch import load_file, save

        path = self.folder / f"{name}.safetensors"
        if path.is_file():
            return load_file(path)
        measured = {module: change.contiguous() for module, change in measure().items()}
        replace_file(path, save(measured))
        return measured

    def written(self, home: Home, name: str, write: Callable[[Path, str], None]) -> str:
        """The digest under which the store keeps the model of this name that `write` fills; `write` is given the key of
        an interrupted write, which goes on from its finished weights."""
        from tasks.export.model import verify_export

        def unless_there(folder: Path) -> None:
            try:
                verify_export(folder)  # written whole before, and not stored
            except ArtifactRefused:
                shutil.rmtree(folder, ignore_errors=True)
                write(folder, "merge")

        own = self.folder / hashlib.sha256(name.encode()).hexdigest()[:16]
        make_folders(own)
        return kept(home, unless_there, own)
