"""Opening a ledger: one schema, whoever comes first; and plain words when it cannot be opened."""

from __future__ import annotations

import socket
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from registry import migrations
from registry.database import Database
from registry.errors import DependencyDown, IntegrityError, RegistryError, Unknown
from registry.ledger import Ledger
from registry.records import FindingRecord
from registry.tables import Table


def test_eight_processes_may_open_an_empty_database_at_once(empty_url, together):
    """K07: whoever comes first builds the schema."""

    def names(_, ready) -> tuple[str, ...]:
        ready()
        with Ledger.open(empty_url) as ledger:
            return ledger.names()

    assert together(8, names) == [()] * 8


def test_the_migrated_schema_is_the_one_that_tables_py_describes(empty_url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database = Database.open(empty_url)
    with database.reading() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
    database.close()


def test_head_names_the_newest_migration():
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(migrations.FOLDER)).get_heads() == [migrations.HEAD]


def test_migrations_go_down_to_nothing_and_up_again(empty_url):
    database = Database.open(empty_url)
    with database.writing() as session:
        migrations.downgrade(session.connection(), "base")
        assert inspect(session.connection()).get_table_names() == ["alembic_version"]
    database.close()
    with Ledger.open(empty_url) as ledger:
        assert ledger.names() == ()


def at_first_schema(url: str) -> Database:
    """A ledger as the first release wrote it: a base, a data set with its sides, a spec, a version, its champion."""
    database = Database.open(url)
    with database.writing() as session:
        migrations.downgrade(session.connection(), "0001")
        run, day = session.connection().exec_driver_sql, "'2026-01-01 00:00:00'"
        a, b, c, d, e, f = (letter * 64 for letter in "abcdef")
        run(f"INSERT INTO bases VALUES ('{a}', 'small', NULL, 'llama', 10, {day})")
        run(f"INSERT INTO codes VALUES ('{b}', '{{}}', '{{}}', {day})")
        run(f"INSERT INTO datasets VALUES ('{c}', 'triage', 'rows', 'd', 9, 7, 1, 1, 'training', {day})")
        run(f"INSERT INTO splits VALUES ('{c}', 'train', 0, 5), ('{c}', 'test', 1, 2)")
        run(f"INSERT INTO specs VALUES ('{d}', '{{\"seed\": 1}}')")
        run(f"INSERT INTO names VALUES ('triage', 1, {day})")
        columns = "id, name, number, kind, version_key, artifact, base, code, spec, manifest, metrics, created_at"
        values = f"1, 'triage', 1, 'adapter', '{e}', '{f}', '{a}', '{b}', '{d}', '{f}', '{{}}', {day}"
        run(f"INSERT INTO versions ({columns}) VALUES ({values})")
        for place, (role, column, target) in enumerate(
            (("base", "base", a), ("code", "code", b), ("dataset",) * 2 + (c,))
        ):
            run(f"INSERT INTO edges (child_id, place, role, {column}) VALUES (1, {place}, '{role}', '{target}')")
        move = "id, name, seq, move, number, decision, actor, reason, created_at"
        run(f"INSERT INTO promotions ({move}) VALUES (1, 'triage', 1, 'promote', 1, '{{}}', '', '', {day})")
    return database


def told(ledger: Ledger) -> tuple:
    version = ledger.champion("triage")
    return (version.ref, version.spec, version.parents, ledger.datasets()[0].counts, ledger.history("triage"))


def test_an_old_ledger_is_brought_up_to_date_with_all_it_knows_and_back(empty_url):
    at_first_schema(empty_url).close()
    with Ledger.open(empty_url) as ledger:
        before = told(ledger)
        assert before[:2] == ("triage:1", {"seed": 1})
        assert before[3] == {"train": 5, "test": 2}
        assert ledger.withdrawals() == ()
        assert [r.version for r in ledger.withdraw("triage:1", reason="the new tables are there")] == ["triage:1"]
        with ledger.database.writing() as session:
            migrations.downgrade(session.connection(), "0001")
    with Ledger.open(empty_url) as ledger:
        assert told(ledger) == before


def test_findings_and_claims_outlive_the_way_to_numbered_verdicts_and_back(empty_url):
    """Down, the first finding of a window is kept, and a claim of a later one becomes one of it."""
    database = at_first_schema(empty_url)
    a, b, day = "a" * 64, "b" * 64, "'2026-01-01 00:00:00'"
    with database.writing() as session:
        run = session.connection().exec_driver_sql
        run(f"INSERT INTO windows VALUES ('triage', '{a}', 9, 'day', {day}), ('triage', '{b}', 8, 'day', {day})")
        columns = "id, task, version_id, window_digest, verdict, action, report, created_at"
        for number, window in ((1, a), (2, b)):
            run(f"INSERT INTO findings ({columns}) VALUES ({number}, 'triage', 1, '{window}', 'v', 'w', '{{}}', {day})")
        run(f"INSERT INTO retrain_claims VALUES ('triage', '{a}', 1, 'one', {day})")
    database.close()
    with Ledger.open(empty_url) as ledger:
        before = ledger.findings("triage"), ledger.retrain_claims("triage")
        assert [(one.window_digest, one.verdict) for one in before[0]] == [(a, "v"), (b, "v")]
        later = FindingRecord("triage", "triage:1", b, "moved", "ask", {})
        assert ledger.remember_finding(later).verdict == "moved"
        assert ledger.claim_retrain(later, claimant="two")
        with ledger.database.writing() as session:
            migrations.downgrade(session.connection(), "0003")
    with Ledger.open(empty_url) as ledger:
        assert ledger.findings("triage") == before[0]
        assert [(claim.window_digest, claim.claimant) for claim in ledger.retrain_claims("triage")] == [
            (a, "one"),
            (b, "two"),
        ]


def test_constraints_of_the_models_are_in_the_migrated_database(tmp_path):
    """Alembic does not compare CHECK constraints, so SQLite's own text is compared."""
    Database.open(f"sqlite:///{tmp_path}/migrated.db").close()
    engine = create_engine(f"sqlite:///{tmp_path}/described.db")
    Table.metadata.create_all(engine)
    engine.dispose()

    def checks(path: Path) -> dict[str, set[str]]:
        found = inspect(create_engine(f"sqlite:///{path}"))
        return {
            table: {" ".join(check["sqltext"].split()) for check in found.get_check_constraints(table)}
            for table in Table.metadata.tables
        }

    assert checks(tmp_path / "migrated.db") == checks(tmp_path / "described.db")


def test_sqlite_runs_in_wal_below_parents_that_were_made_for_it(tmp_path):
    path = tmp_path / "some" / "where" / "ledger.db"
    Ledger.open(f"sqlite:///{path}").close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_schema_from_the_future_is_refused(empty_url):
    database = Database.open(empty_url)
    with database.writing() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(IntegrityError) as refusal:
        Ledger.open(empty_url)
    assert "9999" in str(refusal.value)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(IntegrityError) as refusal:
        Ledger.open(f"sqlite:///{path}")
    assert refusal.value.exit_code == 4


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_unreachable_database_is_one_line_with_exit_7_and_without_the_password():
    address = f"postgresql://factory:CANARY@127.0.0.1:{closed_port()}/ledger"
    with pytest.raises(DependencyDown) as refusal:
        Ledger.open(address)
    error = refusal.value
    assert error.exit_code == 7
    assert len(error.lines()) == 1
    assert "\n" not in error.lines()[0]
    assert "127.0.0.1" in error.lines()[0]
    assert "CANARY" not in repr(error) + str(error)


def test_a_driver_that_repeats_the_password_is_not_repeated(monkeypatch):
    import psycopg

    def refuse(*_: object, **__: object) -> None:
        raise psycopg.OperationalError("FATAL: CANARY is not the password of factory")

    monkeypatch.setattr("psycopg.connect", refuse)
    with pytest.raises(DependencyDown) as refusal:
        Ledger.open("postgresql://factory:CANARY@127.0.0.1/ledger")
    assert "is not the password of factory" in str(refusal.value)
    assert "CANARY" not in str(refusal.value)


@pytest.mark.postgres
def test_a_wrong_database_name_is_exit_7_without_the_password(postgres_server):
    address = postgres_server.replace("factory@/postgres", "factory:CANARY@/nowhere")
    with pytest.raises(DependencyDown) as refusal:
        Ledger.open(address)
    assert "nowhere" in str(refusal.value)
    assert "CANARY" not in str(refusal.value)


@pytest.mark.parametrize(
    "address",
    ["", "nonsense", "mysql://u:CANARY@h/x", "sqlite://", "sqlite:///:memory:", "postgresql+psycopg2://u:CANARY@h/x"],
)
def test_a_url_that_names_no_database_is_exit_2_without_the_password(address):
    with pytest.raises(Unknown) as refusal:
        Ledger.open(address)
    assert refusal.value.exit_code == 2
    assert "CANARY" not in str(refusal.value)


def test_a_home_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RegistryError) as refusal:
        Ledger.open(f"sqlite:///{tmp_path}/file/ledger.db")
    assert len(refusal.value.lines()) == 1


def test_a_ledger_that_stays_locked_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("registry.database.BUSY_SECONDS", 0.1)
    path = tmp_path / "ledger.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DependencyDown) as refusal:
            ledger.take_lease("x", holder="me", seconds=1)
        other.execute("ROLLBACK")
        other.close()
        assert "locked" in str(refusal.value)
        assert ledger.take_lease("x", holder="me", seconds=1) is not None


def test_a_reader_is_not_stopped_by_a_writer(tmp_path):
    path = tmp_path / "ledger.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert ledger.names() == ()
        other.close()
