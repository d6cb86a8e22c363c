"""Reaching the ledger's database: one engine, two kinds of transactions, a schema that builds itself.

SQLite runs in WAL; a writing transaction begins with BEGIN IMMEDIATE, because a reading one that turns into a writing
one is refused at once, whatever the busy timeout. PostgreSQL runs at READ COMMITTED with row locks where it matters.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from registry.errors import DependencyDown, IntegrityError, NoSpace, RegistryError, Unknown
from registry.fingerprint import canonical
from registry.migrations import HEAD, upgrade

BUSY_SECONDS = 30
CONNECT_SECONDS = 5
SYNCHRONOUS = "FULL"  # a committed row survives a power cut
HISTORY_LOCK = 0x_FAC7_0815
MIGRATION_LOCK = 0x_FAC7_0417  # any constant: the advisory lock under which PostgreSQL's schema is built


class Database:
    """Sessions that read, sessions that write, and errors that a person can act on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        forget = weakref.WeakMethod(self._forget_connections)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    @classmethod
    def open(cls, url: str) -> Database:
        """Connect and bring the schema up to date; safe when many processes open an empty database at once.

        Raises:
            Unknown: for a URL that names no database we speak to.
            DependencyDown: the server does not answer, or the file stays locked.
            IntegrityError: the file is no database, or its schema is newer than this program.
        """
        engine = _engine(_parsed(url))
        database = cls(engine)
        with database._said_plainly():
            if engine.dialect.name == "sqlite":
                _switch_to_wal(engine)
            _bring_up_to_date(engine, database._writer)
        return database

    @property
    def dialect(self) -> str:
        return self._engine.dialect.name

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._said_plainly(), Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with self._said_plainly(), Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def _forget_connections(self) -> None:
        """In a forked child: the parent's connections are the parent's."""
        self._engine.dispose(close=False)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, sqlite3.DatabaseError) as error:  # the second from a PRAGMA, before SQLAlchemy listens
            unreachable = isinstance(error, OperationalError | InterfaceError | sqlite3.OperationalError)
            plain = self._plain(getattr(error, "orig", None) or error, unreachable)
            if plain is None:
                raise
            raise plain from error

    def _plain(self, error: BaseException, unreachable: bool) -> RegistryError | None:
        """What a person can do about it; None for what only a fault of ours can cause."""
        secret, lines = self._engine.url.password, str(error).strip().splitlines()
        reason = lines[0].strip() if lines else type(error).__name__
        reason = reason.replace(str(secret), "***") if secret else reason
        if "disk is full" in reason or "No space left" in reason:
            return NoSpace.one("E-STORE-006", self.shown, f"no space is left ({reason})", "free space and run again")
        if "not a database" in reason or "malformed" in reason:
            wrong = f"is not a whole SQLite file ({reason})"
            return IntegrityError.one("E-LEDGER-013", self.shown, wrong, "restore it from a backup")
        if "database is locked" in reason:
            wrong = f"stayed locked for {BUSY_SECONDS} s"
            return DependencyDown.one("E-LEDGER-011", self.shown, wrong, "wait for the other program and run again")
        if unreachable:
            wrong = f"does not answer ({reason})"
            return DependencyDown.one("E-LEDGER-010", self.shown, wrong, "start the database; a retry is safe")
        return None


def database_seconds(session: Session) -> float:
    """Seconds since 1970 by the database's clock, the only one that all holders of a lease share."""
    sqlite = session.get_bind().dialect.name == "sqlite"
    clock = "(julianday('now') - 2440587.5) * 86400.0" if sqlite else "extract(epoch from clock_timestamp())"
    return float(session.execute(text(f"SELECT {clock}")).scalar_one())


def hold_history(session: Session, *, alone: bool = False) -> None:
    """Until the commit, what is referred to stays: whoever removes or withdraws (`alone`) waits for those who register
    or promote, and they for it. On SQLite every writing transaction is alone, from this line on: what is looked at
    outside of the database counts only after it has begun."""
    session.connection()
    if session.get_bind().dialect.name == "postgresql":
        function = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
        session.execute(text(f"SELECT {function}(:key)"), {"key": HISTORY_LOCK})


def insert_once(session: Session, table: Any, **values: Any) -> bool:
    """Insert, or leave what is there; True if the row is new. Safe against another writer of the same key."""
    if session.get_bind().dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
    statement = insert(table.__table__).values(**values).on_conflict_do_nothing()
    result: Any = session.execute(statement.execution_options(preserve_rowcount=True))  # PostgreSQL's is dropped else
    return int(result.rowcount) == 1


def _parsed(url: str) -> URL:
    remedy = "write sqlite:///path/ledger.db or postgresql+psycopg://user:password@host/name"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise Unknown.one("E-LEDGER-014", "ledger URL", "cannot be read as a database URL", remedy) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise Unknown.one("E-LEDGER-014", "ledger URL", f"{parsed.drivername} is not spoken here", remedy)
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise Unknown.one("E-LEDGER-014", "ledger URL", "names no file; a ledger must outlive its process", remedy)
    return parsed


def _engine(url: URL) -> Engine:
    serializer = {"json_serializer": lambda value: canonical(value).decode()}
    if url.drivername != "sqlite":
        patience = {"connect_timeout": CONNECT_SECONDS}
        return create_engine(url, pool_pre_ping=True, connect_args=patience, **serializer)
    _make_parents(Path(str(url.database)))
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, **serializer)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _make_parents(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        wrong = f"its folder cannot be made ({error.strerror})"
        raise DependencyDown.one("E-LEDGER-010", path, wrong, "choose another FACTORY_HOME or ledger URL") from error


def _switch_to_wal(engine: Engine) -> None:
    """WAL is a property of the file. The switch needs the file alone and does not wait for it, so we do."""
    deadline = time.monotonic() + BUSY_SECONDS
    connection = engine.raw_connection()
    try:
        while True:
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
    finally:
        connection.close()


def _bring_up_to_date(engine: Engine, writer: Engine) -> None:
    """Build or upgrade the schema under a lock; without one where it is up to date already, the usual case."""
    with engine.connect() as connection:
        if _revision(connection) == HEAD:
            return
    with writer.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        revision = _revision(connection)
        if revision != HEAD:
            upgrade(connection, revision, shown=engine.url.render_as_string(hide_password=True))


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
