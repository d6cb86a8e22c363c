"""Merged models that contain an adapter which has been refreshed since: what is to be merged again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.progress import voice
from flows.together import Refusal, raise_together, unless_stopped
from flows.wiring import Home
from registry.errors import RegistryError
from tasks.errors import FactoryError
from tasks.specs import MergeSpec

if TYPE_CHECKING:
    from flows.merge import MergeOutcome


@dataclass(frozen=True)
class Stale:
    """A served merge, one of its parents, and the version that serves that parent's task now."""

    merged: str
    parent: str
    champion: str

    @property
    def sentence(self) -> str:
        return f"{self.merged} contains {self.parent}; {self.champion} is served since: merge its recipe again"


def stale_merges(home: Home, names: Iterable[str] | None = None) -> tuple[Stale, ...]:
    """Every champion, of these names or of all, that was merged from an adapter that is no longer its task's champion;
    in order of name."""
    found = []
    for name in sorted(home.ledger.names() if names is None else names):
        version = home.ledger.champion(name)
        if version is None or version.kind != "merged":
            continue
        for role, ref in version.parents:
            champion = home.ledger.champion(ref.partition(":")[0]) if role == "parent" else None
            if champion is not None and champion.ref != ref:
                found.append(Stale(version.ref, ref, champion.ref))
    return tuple(found)


def made_stale(home: Home, task: str) -> tuple[Stale, ...]:
    """The served merges that the last move of a task's champion has made stale, said.

    Only what contains a version of the task is looked at: a fleet promotes thousands.
    """
    made = [ref for one in home.ledger.listed(task) for ref in home.ledger.containing(f"{task}:{one.number}")]
    names = {ref.partition(":")[0] for ref in made} - {task}
    marked = tuple(mark for mark in stale_merges(home, names) if mark.parent.partition(":")[0] == task)
    for mark in marked:
        voice.say(f"  {mark.sentence}")
    return marked


def merged_again(home: Home, stale: Sequence[Stale]) -> tuple[MergeOutcome, ...]:
    """Each of these merges by its own recipe, with the adapters that serve its tasks now; one that passes its gates
    takes the place of the old one.

    Raises:
        FactoryError, RegistryError: what could not be merged, after all have been tried.
    """
    from flows.merge import merge

    done: list[MergeOutcome] = []
    refused: list[Refusal] = []
    for ref in sorted({mark.merged for mark in stale}):
        known = home.ledger.version(ref).spec
        recipe = {name: known[name] for name in MergeSpec.model_fields if name in known}
        recipe["parents"] = [champion_of(home, parent) for parent in known["parents"]]
        voice.say(f"{ref} again, with {', '.join(recipe['parents'])}")
        with tempfile.TemporaryDirectory(dir=home.scratch()) as folder:
            path = Path(folder, f"{known['name']}.yaml")
            path.write_text(json.dumps(recipe), encoding="utf-8")  # every JSON text is a YAML text
            try:
                done.append(merge(str(path)))
            except (FactoryError, RegistryError) as error:
                refused.append(unless_stopped(error))
    raise_together(refused)
    return tuple(done)


def champion_of(home: Home, parent: str) -> str:
    """The version that serves a parent's task now, or the parent itself where none does."""
    champion = home.ledger.champion(home.ledger.version(parent).name)
    return champion.ref if champion is not None else parent
