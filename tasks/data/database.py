"""Rows of an SQL query by SQLAlchemy URL: read in a transaction that cannot write, and hashed as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tasks.data.formats import MAX_ROWS, Parsed, check_columns
from tasks.errors import DataRefused, DependencyDown, Problem, SpecRefused

FETCHED_AT_ONCE = 10_000
READ_ONLY: Mapping[str, dict[str, bool]] = MappingProxyType({"postgresql": {"postgresql_readonly": True}})


def read_query(source: str, query: str) -> tuple[str, Parsed]:
    """SHA-256 of the rows as JSON, in the order of the query, and the rows, numbered from 1.

    Raises:
        SpecRefused: the URL holds a password, or its driver is not installed.
        DataRefused: the database refuses the query, or the query returns no rows at all (as an UPDATE does).
        DependencyDown: the database does not answer.
    """
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, ResourceClosedError

    try:
        url = make_url(source)
        if url.password is not None:
            wrong, remedy = "the URL holds a password", "leave it to the driver: PGPASSWORD, ~/.pgpass, ~/.my.cnf"
            raise SpecRefused.one("E-SPEC-038", "data.source", wrong, remedy)
        if url.get_backend_name() == "sqlite":  # it would make an empty file where there is none
            url = url.set(database=f"file:{url.database}").update_query_dict({"mode": "ro", "uri": "true"})
        if url.drivername == "postgresql":  # the driver that the extra `postgres` installs
            url = url.set(drivername="postgresql+psycopg")
        engine = create_engine(url)
    except (ArgumentError, ImportError, ValueError) as error:
        if isinstance(error, SpecRefused):
            raise
        remedy = "write an SQLAlchemy URL, and install its driver"
        raise SpecRefused.one("E-SPEC-038", "data.source", f"no database: {_line(error)}", remedy) from None
    place, digest = shown_url(source), hashlib.sha256()
    parsed = Parsed()
    try:
        with engine.connect().execution_options(
            stream_results=True, **READ_ONLY.get(engine.dialect.name, {})
        ) as connection:
            result = connection.execute(text(query))
            parsed.columns = tuple(result.keys())
            check_columns(parsed.columns, place)
            for rows in result.partitions(FETCHED_AT_ONCE):
                for row in rows:
                    parsed.records.append(dict(zip(parsed.columns, row, strict=True)))
                    digest.update(json.dumps(list(row), default=repr).encode() + b"\n")
                if len(parsed.records) > MAX_ROWS:
                    raise DataRefused.one("E-DATA-003", place, f"more than {MAX_ROWS:,} rows", "narrow the query")
            connection.rollback()
    except ResourceClosedError:
        raise DataRefused.one("E-DATA-003", place, "the query returns no rows", "write a SELECT") from None
    except (OperationalError, InterfaceError) as error:
        if engine.dialect.name != "sqlite" and (error.connection_invalidated or "connect" in str(error.orig).lower()):
            remedy = "try again when the database answers; it is safe"
            raise DependencyDown.one("E-DATA-020", place, _line(error.orig or error), remedy) from None
        raise _refused(place, error) from None
    except DBAPIError as error:
        raise _refused(place, error) from None
    finally:
        engine.dispose()
    parsed.rows = list(range(1, len(parsed.records) + 1))
    return digest.hexdigest(), parsed


def shown_url(source: str) -> str:
    """A URL as a message names it: without what could be secret."""
    from sqlalchemy.engine import make_url

    return make_url(source).set(query={}).render_as_string(hide_password=True)


def _refused(place: str, error: Any) -> DataRefused:
    wrong = f"the database refuses the query: {_line(error.orig or error)}"
    return DataRefused(Problem("E-DATA-003", place, wrong, "mend data.query; it may only read"))


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0][:200]
