"""Rows that judged a version and rows that it learned from are different rows: only the stored rows can say."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

from flows.wiring import Home
from registry.errors import IntegrityError, Problem
from tasks.data.snapshot import read_snapshot
from tasks.errors import ArtifactRefused

LEARNED = ("dataset", "replay", "window")  # roles of the data sets whose train rows a version may have learned from


def shared_rows(home: Home) -> Iterator[Problem]:
    """One problem per adapter and data set of whose train rows one judged it, though it was frozen when they came.

    An earlier data set cannot know what will judge later: of its rows a retrain replays only those that do not. Damaged
    snapshots are left to the check of the store.
    """
    train_keys = cache(partial(_train_keys, home))
    came = {record.digest: place for place, record in enumerate(home.ledger.datasets())}
    for version in home.ledger.versions():
        tests = [e for e in home.ledger.evaluations(version.ref) if e.side == "test"]
        for role, ref in version.parents if version.kind == "adapter" else ():
            if role not in LEARNED:
                continue
            digest = ref.removeprefix("dataset:")
            frozen = {key for e in tests if came[e.dataset] <= came[digest] for key in e.keys}
            if shared := frozen & train_keys(digest):
                wrong = f"{len(shared)} of its test rows are train rows of {ref[:20]}"
                remedy = "withdraw it, and train again: the door keeps such rows out"
                yield Problem("E-LEDGER-115", version.ref, wrong, remedy)


def _train_keys(home: Home, digest: str) -> frozenset[str]:
    try:
        return frozenset(example.key for example in read_snapshot(home.store.path(digest)).examples("train"))
    except (IntegrityError, ArtifactRefused):
        return frozenset()
