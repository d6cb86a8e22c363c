"""Merged models that contain an adapter which is served no more: each merged again, by its own recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect import flow
from prefect.events import emit_event

from flows.merge_stale import Stale, made_stale, merged_again, stale_merges
from flows.progress import voice
from flows.wiring import Home, opened
from infra.automations import STALE_EVENT, stale_resource

if TYPE_CHECKING:
    from flows.merge import MergeOutcome


@flow(name="refresh", description="Merge again what is served and contains an adapter that was refreshed since.")
def refresh() -> Sequence[MergeOutcome]:
    """One new version of every stale merge; served if it passes its gates, else the old one stays."""
    home = opened()
    marked = stale_merges(home)
    for mark in marked:
        voice.say(mark.sentence)
    return merged_again(home, marked) if marked else ()


def told_stale(home: Home, task: str) -> tuple[Stale, ...]:
    """The served merges that a move of the champion has made stale, said and sent."""
    marked = made_stale(home, task)
    send_stale(task, marked)
    return marked


def send_stale(task: str, marked: Sequence[Stale]) -> None:
    """An event for each merged model."""
    for ref in sorted({mark.merged for mark in marked}):
        emit_event(STALE_EVENT, resource=stale_resource(ref.partition(":")[0]), payload={"merged": ref, "task": task})
