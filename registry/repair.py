"""Setting right what can be set right without a guess: bytes whose hash proves them, and notes that are overdue.

What a repair may never touch is history: no version, edge, score or promotion is written or removed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from sqlalchemy import func, select, update

from registry.database import hold_history
from registry.errors import IntegrityError, RegistryError
from registry.fingerprint import digest_of_folder
from registry.ledger import Ledger
from registry.references import referenced
from registry.store import Store
from registry.tables import NameRow, VersionRow

Copies = Callable[[str], Iterable[Path]]  # digest -> folders that may hold its files


def repair(ledger: Ledger, store: Store, copies: Copies = lambda digest: ()) -> tuple[str, ...]:
    """One sentence per thing that was set right.

    - a damaged object that something refers to is replaced by a copy with exactly its bytes, if `copies` has one;
    - a damaged object that nothing refers to is removed;
    - a count of numbers that lags behind the versions is brought up to them;
    - an attempt whose process died is noted as lost.
    """
    return (*_objects(ledger, store, copies), *_numbers(ledger), *_attempts(ledger))


def _objects(ledger: Ledger, store: Store, copies: Copies) -> Iterator[str]:
    with ledger.database.reading() as session:
        needed = referenced(session)
    for digest in sorted({*needed, *store.digests()}):
        try:
            store.check(digest)
        except IntegrityError:
            if digest not in needed:
                with ledger.database.writing() as session:
                    hold_history(session, alone=True)
                    if digest not in referenced(session):
                        store.hide(digest)
                store.erase_hidden()
                yield f"object {digest[:12]} was damaged and nothing refers to it: removed"
            elif _restored(store, digest, copies):
                yield f"{needed[digest]}: its files were damaged: restored from a copy with the same hash"


def _restored(store: Store, digest: str, copies: Copies) -> bool:
    for folder in copies(digest):
        with suppress(RegistryError, OSError):
            if digest_of_folder(folder) == digest and store.put(folder) == digest:
                return True
    return False


def _numbers(ledger: Ledger) -> Iterator[str]:
    newest = select(VersionRow.name, func.max(VersionRow.number)).group_by(VersionRow.name)
    with ledger.database.writing() as session:
        last = dict(session.execute(select(NameRow.name, NameRow.last_number)).tuples().all())
        for name, number in session.execute(newest).tuples().all():
            if last.get(name, number) < number:
                session.execute(update(NameRow).where(NameRow.name == name).values(last_number=number))
                yield f"{name}: {last[name]} numbers were counted, v{number} is there: counted again"


def _attempts(ledger: Ledger) -> Iterator[str]:
    lost = ledger.note_lost_attempts()
    if lost:
        yield f"{lost} attempts whose process died: noted as lost"
