"""Tables of history: a trigger refuses UPDATE and DELETE. Dropping a table takes its triggers along."""

from __future__ import annotations

from alembic import op

NOTHING_CHANGES = """
CREATE OR REPLACE FUNCTION nothing_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$
"""


def refuse_changes(*tables: str) -> None:
    sqlite = op.get_context().dialect.name == "sqlite"
    if not sqlite:
        op.execute(NOTHING_CHANGES)
    for table in tables:
        for verb in ("UPDATE", "DELETE"):
            body = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            call = "FOR EACH ROW EXECUTE FUNCTION nothing_changes()"
            name = f"{table}_refuses_{verb.lower()}"
            op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} {body if sqlite else call}")
