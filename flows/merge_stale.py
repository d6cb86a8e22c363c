"""Merged models that contain an adapter which has been refreshed since: what is to be merged again."""

from __future__ import annotations

from dataclasses import dataclass

from flows.wiring import Home


@dataclass(frozen=True)
class Stale:
    """A served merge, one of its parents, and the version that serves that parent's task now."""

    merged: str
    parent: str
    champion: str

    @property
    def sentence(self) -> str:
        return f"{self.merged} contains {self.parent}; {self.champion} is served since: merge its recipe again"


def stale_merges(home: Home) -> tuple[Stale, ...]:
    """Every champion that was merged from an adapter that is no longer its task's champion, in order of name."""
    found = []
    for name in home.ledger.names():
        version = home.ledger.champion(name)
        if version is None or version.kind != "merged":
            continue
        for role, ref in version.parents:
            champion = home.ledger.champion(ref.partition(":")[0]) if role == "parent" else None
            if champion is not None and champion.ref != ref:
                found.append(Stale(version.ref, ref, champion.ref))
    return tuple(found)
