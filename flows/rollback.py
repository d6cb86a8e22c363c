"""The champion before this one, served again at once: a move in the ledger that needs no server and no flow."""

from __future__ import annotations

from flows.mirroring import moves_told_within
from flows.progress import voice
from flows.wiring import opened
from registry.records import PromotionRecord

PATIENCE_SECONDS = 5.0  # for MLflow, after the champion has moved: the command takes less than ten in all


def rollback(task: str) -> PromotionRecord:
    """Back to the previous champion.

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
    moves_told_within(PATIENCE_SECONDS, home, task)
    return promotion
