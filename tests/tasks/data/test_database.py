from __future__ import annotations

import sqlite3

import pytest

from tasks.data.door import admit
from tasks.errors import DataRefused, DependencyDown, SpecRefused
from tasks.spec_files import load_adapter_spec


@pytest.fixture
def shop(tmp_path, clean):
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE complaints (id INTEGER PRIMARY KEY, text TEXT, label TEXT)")
        rows = [(row["text"], row["label"]) for row in clean(80)]
        database.executemany("INSERT INTO complaints (text, label) VALUES (?, ?)", rows)
    database.close()
    return path


def test_rows_of_a_query_are_the_rows_of_the_file_that_says_the_same(shop, tmp_path, asks, write, clean):
    query = "SELECT text, label FROM complaints ORDER BY id"
    asked, told = (
        admit(asks(f"sqlite:///{shop}", query=query)),
        admit(asks(write(tmp_path / "a.csv", clean(80)))),
    )
    for side in ("train", "validation", "test"):
        assert [(e.key, e.target) for e in asked.examples[side]] == [(e.key, e.target) for e in told.examples[side]]
    assert asked.row_unit == "record"


def test_the_digest_of_a_query_is_that_of_its_rows(shop, asks):
    query = "SELECT text, label FROM complaints ORDER BY id"
    first = admit(asks(f"sqlite:///{shop}", query=query)).source_digest
    assert admit(asks(f"sqlite:///{shop}", query=query)).source_digest == first
    with sqlite3.connect(shop) as database:
        database.execute("UPDATE complaints SET label = 'fee' WHERE id = 1")
    database.close()
    assert admit(asks(f"sqlite:///{shop}", query=query)).source_digest != first


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT text FROM nowhere", "no such table"),
        ("DELETE FROM complaints", "readonly"),
        ("SELECT text AS a, label AS a FROM complaints", "named twice"),
    ],
)
def test_a_query_that_fails_or_writes_is_refused_and_nothing_is_changed(shop, asks, query, words):
    before = shop.read_bytes()
    with pytest.raises(DataRefused, match=words):
        admit(asks(f"sqlite:///{shop}", query=query))
    assert shop.read_bytes() == before


def test_a_database_that_is_not_there_is_refused_and_not_made(tmp_path, asks):
    with pytest.raises(DataRefused, match="E-DATA-003"):
        admit(asks(f"sqlite:///{tmp_path}/none.db", query="SELECT 1"))
    assert not (tmp_path / "none.db").exists()


def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path, asks):
    spec = tmp_path / "a.yaml"
    spec.write_text(
        "task: t\nkind: classification\nbase: {model: ./b}\n"
        "data: {source: 'postgresql+psycopg://ann:hunter2@host/shop', query: SELECT 1}\n"
    )
    for refuse in (
        lambda: load_adapter_spec(spec),
        lambda: admit(asks("postgresql://ann:hunter2@host/shop", query="X")),
    ):
        with pytest.raises(SpecRefused, match="E-SPEC-038") as refused:
            refuse()
        assert "hunter2" not in str(refused.value)


def test_a_spec_names_a_database_relative_to_itself(tmp_path, shop):
    spec = tmp_path / "a.yaml"
    spec.write_text(
        "task: t\nkind: classification\nbase: {model: ./b}\n"
        "data: {source: 'sqlite:///shop.db', query: SELECT text AS text FROM complaints}\n"
    )
    assert load_adapter_spec(spec).data.source == f"sqlite:///{shop}"


@pytest.fixture
def postgres_shop(empty_postgres_url, clean):
    import psycopg

    with psycopg.connect(empty_postgres_url, autocommit=True) as database:
        database.execute("CREATE TABLE complaints (id SERIAL PRIMARY KEY, text TEXT, label TEXT)")
        for row in clean(80):
            database.execute("INSERT INTO complaints (text, label) VALUES (%s, %s)", (row["text"], row["label"]))
    return empty_postgres_url


@pytest.mark.postgres
def test_a_query_of_postgresql_gives_the_rows_and_the_digest_that_sqlite_gives(shop, postgres_shop, asks):
    query = "SELECT text, label FROM complaints ORDER BY id"
    here, there = admit(asks(f"sqlite:///{shop}", query=query)), admit(asks(postgres_shop, query=query))
    assert (there.examples, there.source_digest, there.rows_in) == (here.examples, here.source_digest, 80)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT text FROM nowhere", "does not exist"),
        ("DELETE FROM complaints RETURNING text, label", "syntax error|read-only transaction"),
        ("SELECT setval('complaints_id_seq', 7)", "read-only transaction"),
    ],
)
def test_a_query_that_fails_or_writes_on_postgresql_is_refused_and_nothing_is_changed(
    postgres_shop, asks, query, words
):
    import psycopg

    with pytest.raises(DataRefused, match=words):
        admit(asks(postgres_shop, query=query))
    with psycopg.connect(postgres_shop) as database:
        assert database.execute("SELECT count(*) FROM complaints").fetchone() == (80,)


def test_a_database_server_that_is_down_is_no_fault_of_the_data(tmp_path, asks):
    with pytest.raises(DependencyDown, match="E-DATA-020"):
        admit(asks(f"postgresql://ann@/shop?host={tmp_path}", query="SELECT 1"))
