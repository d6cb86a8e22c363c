"""What the ledger's columns are made of: a column says its type by its annotation, and each shape has one name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.types import TypeDecorator

DIGEST = String(64)
ROW_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only under INTEGER PRIMARY KEY

Digest = Annotated[str, mapped_column(DIGEST)]
DigestKey = Annotated[str, mapped_column(DIGEST, primary_key=True)]
RowId = Annotated[int, mapped_column(ROW_ID, primary_key=True)]
Count = Annotated[int, mapped_column(BigInteger)]
Word = Annotated[str, mapped_column(String(16))]  # one of a few
Side = Annotated[str, mapped_column(String(32))]
TextKey = Annotated[str, mapped_column(primary_key=True)]


class Utc(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets the zone, PostgreSQL gives that of the session."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


class Table(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: Utc,
        bytes: LargeBinary,
        dict[str, Any]: JSON,
        dict[str, str]: JSON,
        dict[str, float]: JSON,
    }
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
