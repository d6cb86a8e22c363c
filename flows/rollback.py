"""The champion before this one, served again at once: a move in the ledger that needs no server and no flow."""

from __future__ import annotations

from flows.merge_stale import made_stale
from flows.mirroring import moves_told_within
from flows.progress import voice
from flows.wiring import Home, opened
from infra.running import answers
from registry.records import PromotionRecord

PATIENCE_SECONDS = 5.0  # for MLflow, after the champion has moved: the command takes less than ten in all


def rollback(task: str) -> PromotionRecord:
    """Back to the previous champion. Served merges that contain the one that steps back are stale by that, and told.

    Args:
        task: The task whose champion steps back.

    Raises:
        Unknown: the task has no earlier champion.
        Conflict: someone else moved the champion meanwhile.
        IntegrityError: the earlier champion's files or signature do not verify.
    """
    home = opened()
    promotion = home.ledger.rollback(task, actor="factory", reason="asked for")
    voice.say(f"{task}: champion is v{promotion.number} again (was v{promotion.previous})")
    stale_told(home, task)
    moves_told_within(PATIENCE_SECONDS, home, task)
    return promotion


def stale_told(home: Home, task: str) -> None:
    """The merges that are stale now, to people, and as an event where a Prefect server is there to hear it: Prefect is
    loaded for nothing else, and would wait for one that is down."""
    marked = made_stale(home, task)
    server = home.settings.prefect_api_url
    if marked and server and answers(server):
        from flows.refresh import send_stale

        send_stale(task, marked)
    elif marked:
        voice.say("  no Prefect server heard of it; `factory merge --stale` merges them again")
