"""A version taken back: marked with everything that contains it, MLflow told, and what is still served named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.mirroring import mirrored
from flows.wiring import opened
from registry.records import WithdrawalRecord


@dataclass(frozen=True)
class Withdrawn:
    """What is marked now that was not before, and which of it is still champion of its name."""

    marked: tuple[WithdrawalRecord, ...]
    served: tuple[str, ...]

    @property
    def sentences(self) -> Sequence[str]:
        lines = [
            f"{record.version} is withdrawn"
            + ("" if record.cause == record.version else f": it contains {record.cause}")
            for record in self.marked
        ] or ["it was withdrawn before"]
        return [*lines, *(f"{ref} is still served -> factory rollback {ref.split(':')[0]}" for ref in self.served)]


def withdraw(ref: str, reason: str) -> Withdrawn:
    """Mark a version and all that contain it. Champions stay where they are: moving them is a decision of its own.

    Raises:
        Unknown: the version is not in the ledger.
    """
    home = opened()
    marked = home.ledger.withdraw(ref, actor="factory", reason=reason)
    gone = {record.version for record in home.ledger.withdrawals()}
    standing = (home.ledger.champion(name) for name in home.ledger.names())
    mirrored(home)
    return Withdrawn(marked, tuple(champion.ref for champion in standing if champion and champion.ref in gone))
