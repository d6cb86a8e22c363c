"""MLflow brought up to the ledger by whoever changed it, with or without a flow around."""

from __future__ import annotations

from threading import Thread

from flows.progress import voice
from flows.wiring import Home


def mirrored(home: Home, *, moves_of: str | None = None) -> None:
    """MLflow told what it has still to hear; an outage costs nothing, the outbox waits for `factory reconcile`.

    Args:
        moves_of: a name, of which only the champion's moves are told.
    """
    from registry.mirror import mirror

    report = mirror(home.ledger, home.store, home.tracker, moves_of=moves_of)
    if report.problem:
        voice.say(
            f"  MLflow is behind by {report.pending} entries ({report.problem.wrong}); `factory reconcile` sends them"
        )


def moves_told_within(seconds: float, home: Home, name: str) -> None:
    """The champion's moves told to MLflow, waiting no longer than this: it may be down in ways that take minutes."""
    telling = Thread(target=mirrored, args=(home,), kwargs={"moves_of": name}, daemon=True)
    telling.start()
    telling.join(seconds)
    if telling.is_alive():
        voice.say(f"  MLflow has not answered for {seconds:.0f} s; `factory reconcile` tells it")
