"""What the ledger promises about registering, on SQLite and on PostgreSQL."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import Conflict, DraftRefused, IntegrityError, RegistryError, Unknown, Unstable
from registry.ledger import Ledger
from registry.names import REFERENCE
from registry.records import DatasetRecord, Parent, base_ref
from registry.store import Store

FORK = multiprocessing.get_context("fork")


def rows(workshop, table: str) -> int:
    with workshop.ledger.database.reading() as session:
        return session.connection().exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()


def test_numbers_of_a_name_count_up_from_one(workshop):
    numbers = [workshop.ledger.register(workshop.draft("triage", i)).number for i in range(4)]
    other = workshop.ledger.register(workshop.draft("routing"))
    assert (numbers, other.number) == ([1, 2, 3, 4], 1)


def test_a_version_comes_back_as_it_was_registered(workshop):
    draft = workshop.draft("triage", run="r1", flow_run="f1", figures=workshop.store.put_files({"loss.svg": b"<svg/>"}))
    registered = workshop.ledger.register(draft)
    read = workshop.ledger.version("triage:1")
    assert read == registered
    for name in (
        "name",
        "kind",
        "version_key",
        "artifact",
        "base",
        "code",
        "spec",
        "parents",
        "metrics",
        "figures",
        "run",
    ):
        assert getattr(read, name) == getattr(draft, name), name
    assert read.created_at.tzinfo is not None


def test_moments_come_from_the_clock_that_was_handed_in(url, store):
    moment = datetime(2020, 2, 29, 12, 30, tzinfo=UTC)
    from registry.records import BaseRecord

    with Ledger.open(url, store=store, clock=lambda: moment) as ledger:
        ledger.remember_base(BaseRecord("a" * 64, "b", None, "llama", 1))
        digest = store.put_files({"x": b"1"})
        ledger.remember_dataset(DatasetRecord(digest, "t", "s", "d", 1, {"train": 1}, 0, 0))
        with ledger.database.reading() as session:
            from registry.tables import DatasetRow

            assert session.get_one(DatasetRow, digest).created_at == moment


def test_the_same_key_returns_the_standing_version_and_uses_no_number(workshop):
    first = workshop.ledger.register(workshop.draft("triage"))
    again = workshop.ledger.register(replace(workshop.draft("triage"), artifact=workshop.artifact("other bytes")))
    second = workshop.ledger.register(workshop.draft("triage", "different"))
    assert again == first
    assert workshop.ledger.by_key(first.version_key) == first
    assert second.number == 2


def test_one_identity_has_one_name(workshop):
    first = workshop.ledger.register(workshop.draft("triage"))
    with pytest.raises(Conflict) as refusal:
        workshop.ledger.register(replace(workshop.draft("routing"), version_key=first.version_key))
    assert "triage:1" in str(refusal.value)
    assert workshop.ledger.names() == ("triage",)


def test_eight_processes_that_register_one_key_get_one_version_and_eight_keys_get_eight(url, workshop, together):
    shared = workshop.draft("triage", "shared")
    own = [workshop.draft("triage", "own", place) for place in range(8)]

    def numbers(place: int, ready) -> tuple[int, int]:
        with Ledger.open(url, store=Store(workshop.store.root)) as ledger:
            ready()
            return ledger.register(shared).number, ledger.register(own[place]).number

    answers = together(8, numbers)
    assert len({shared_number for shared_number, _ in answers}) == 1
    assert sorted({number for answer in answers for number in answer}) == list(range(1, 10))
    assert rows(workshop, "versions") == rows(workshop, "outbox") == 9


@pytest.mark.parametrize("which", ["artifact", "figures"])
@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_no_row_is_written_before_its_files_verify(workshop, which, harm):
    digest = workshop.store.put_files({"loss.svg": b"<svg/>"})
    draft = workshop.draft("triage", **{which: digest})
    victim = workshop.store.path(digest) / "loss.svg"
    if harm == "missing":
        shutil.rmtree(victim.parent.parent)
    else:
        victim.chmod(0o644)
        victim.write_bytes(b"<svg>")
    with pytest.raises(IntegrityError):
        workshop.ledger.register(draft)
    for table in ("names", "versions", "edges", "outbox"):
        assert rows(workshop, table) == 0


def test_a_ledger_without_a_store_registers_nothing(workshop, url):
    draft = workshop.draft("triage")
    with Ledger.open(url) as blind, pytest.raises(RegistryError):
        blind.register(draft)
    assert rows(workshop, "versions") == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "Triage"}, "'Triage'"),
        ({"name": "dataset"}, "'dataset'"),
        ({"name": "../x"}, "'../x'"),
        ({"kind": "model"}, "kind"),
        ({"version_key": "abc"}, "version_key"),
        ({"metrics": {"loss": float("nan")}}, "metrics.loss"),
        ({"parents": ()}, "parents"),
        ({"parents": (Parent("dataset", "dataset:" + "0" * 64),)}, "dataset:" + "0" * 64),
        ({"base": "0" * 64}, "base:" + "0" * 64),
        ({"code": "0" * 64}, "code:" + "0" * 64),
        ({"kind": "merged"}, "parents"),
    ],
)
def test_a_draft_that_forgets_or_contradicts_is_refused_by_field(sqlite_workshop, change, named):
    with pytest.raises(DraftRefused) as refusal:
        sqlite_workshop.ledger.register(replace(sqlite_workshop.draft("triage"), **change))
    assert named in [problem.where for problem in refusal.value.problems]
    assert refusal.value.exit_code == 2
    assert rows(sqlite_workshop, "versions") == rows(sqlite_workshop, "outbox") == 0


def test_all_that_is_unknown_is_listed_at_once(workshop):
    parents = (Parent("dataset", "dataset:" + "1" * 64), Parent("previous", "triage:7"))
    with pytest.raises(DraftRefused) as refusal:
        workshop.ledger.register(workshop.draft("triage", base="0" * 64, parents=parents))
    assert len(refusal.value.problems) == 3


def test_a_parent_that_can_move_is_refused(workshop):
    workshop.ledger.register(workshop.draft("triage"))
    for ref in ("triage", "triage@champion"):
        with pytest.raises(DraftRefused, match="pin it"):
            workshop.ledger.register(workshop.merged("all", (ref,)))


def test_adapters_of_different_bases_cannot_be_merged(workshop):
    from registry.records import BaseRecord

    other = workshop.ledger.remember_base(BaseRecord("b" * 64, "other", None, "llama", 1)).digest
    workshop.ledger.register(workshop.draft("triage"))
    workshop.ledger.register(workshop.draft("routing", base=other))
    with pytest.raises(DraftRefused) as refusal:
        workshop.ledger.register(workshop.merged("all", ("triage:1", "routing:1")))
    assert "routing:1 is on base bbbbbbbbbbbb" in str(refusal.value)


def test_a_spec_without_stable_bytes_is_refused(workshop):
    with pytest.raises(Unstable):
        workshop.ledger.register(workshop.draft("triage", spec={"rate": float("inf")}))


def test_a_data_set_that_loses_rows_is_refused_with_the_sum(workshop):
    digest = workshop.store.put_files({"x": b"rows"})
    with pytest.raises(DraftRefused) as refusal:
        workshop.ledger.remember_dataset(DatasetRecord(digest, "t", "s", "d", 100, {"train": 90}, 5, 4))
    assert "100 rows came in" in str(refusal.value)
    assert "are 99" in str(refusal.value)


def test_a_data_set_is_remembered_only_when_its_snapshot_is_in_the_store(workshop):
    with pytest.raises(IntegrityError):
        workshop.ledger.remember_dataset(DatasetRecord("d" * 64, "t", "s", "d", 1, {"train": 1}, 0, 0))
    assert workshop.ledger.datasets() == ()


def test_what_is_remembered_twice_stands_once_as_it_was_first(workshop):
    digest = workshop.dataset("x")
    first = workshop.ledger.dataset(digest)
    assert workshop.ledger.remember_dataset(replace(first, source="elsewhere.csv")) == first
    assert workshop.ledger.datasets("triage") == (first,)
    assert workshop.ledger.datasets("routing") == ()
    base = workshop.ledger.base(workshop.base)
    assert workshop.ledger.remember_base(replace(base, name="renamed")) == base
    assert workshop.ledger.base(base_ref(workshop.base)) == base


def test_references_mean_a_number_the_newest_the_champion_or_the_challenger(workshop):
    ledger = workshop.ledger
    for place in range(3):
        ledger.register(workshop.draft("triage", place))
    ledger.promote("triage", 2, expected=None, decision={})
    found = {ref: ledger.version(ref).number for ref in ("triage:1", "triage", "triage@champion", "triage@challenger")}
    assert found == {"triage:1": 1, "triage": 3, "triage@champion": 2, "triage@challenger": 3}


def test_a_challenger_is_newer_than_the_champion_and_was_never_champion(workshop):
    ledger = workshop.ledger
    ledger.register(workshop.draft("triage", 1))
    assert ledger.challenger("triage").number == 1
    ledger.promote("triage", 1, expected=None, decision={})
    assert ledger.challenger("triage") is None
    ledger.register(workshop.draft("triage", 2))
    ledger.promote("triage", 2, expected=1, decision={})
    ledger.rollback("triage")
    assert ledger.challenger("triage") is None  # version 2 was tried and rejected


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("triag", "nearest name is triage"),
        ("nothing-like-it", "; it has triage"),
        ("triage:9", "newest is v1"),
        ("triage@champion", "has no champion"),
        ("triage@best", "not an alias"),
        ("triage@", "not a reference"),
        ("triage:0", "not a reference"),
        ("triage:01", "not a reference"),
        ("'; DROP TABLE versions; --", "not a reference"),
        ("tri%", "not a reference"),
    ],
)
def test_an_unknown_reference_is_exit_2_and_names_the_nearest_known(sqlite_workshop, ref, said):
    sqlite_workshop.ledger.register(sqlite_workshop.draft("triage"))
    with pytest.raises(Unknown) as refusal:
        sqlite_workshop.ledger.version(ref)
    assert said in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_an_ambiguous_or_short_digest_is_refused(workshop):
    from registry.records import BaseRecord

    for end in ("0", "1"):
        workshop.ledger.remember_base(BaseRecord("c" * 63 + end, "twin", None, "llama", 1))
    for ref in ("base:" + "c" * 12, "base:cc", "base:C" + "c" * 63, "base:%%%%%%%%%%%%"):
        with pytest.raises(Unknown):
            workshop.ledger.base(ref)


@given(st.text(max_size=70))
def test_only_lower_case_names_can_be_referred_to(text):
    parts = REFERENCE.fullmatch(text)
    if parts is not None:
        assert set(parts["name"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_history_cannot_be_rewritten_even_with_raw_sql(sqlite_workshop, raw):
    ledger = sqlite_workshop.ledger
    for place in range(2):
        ledger.register(sqlite_workshop.draft("triage", place))
    ledger.promote("triage", 1, expected=None, decision={})
    for statement in (
        "UPDATE versions SET artifact = 'x'",
        "DELETE FROM versions WHERE number = 2",
        "UPDATE edges SET role = 'x'",
        "DELETE FROM edges",
        "UPDATE promotions SET number = 2",
        "DELETE FROM promotions",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(statement)
    raw.execute("PRAGMA foreign_keys = ON")
    columns = "name, seq, prior_seq, move, previous, number, decision, actor, reason, created_at"
    link = f"INSERT INTO promotions ({columns}) VALUES "
    for values in (
        "('triage', 3, 2, 'promote', 1, 2, '{}', '', '', '2026-01-01')",  # a gap
        "('triage', 2, 1, 'promote', 2, 1, '{}', '', '', '2026-01-01')",  # does not start where the chain stands
        "('triage', 2, NULL, 'promote', NULL, 2, '{}', '', '', '2026-01-01')",  # a second beginning
        "('triage', 1, NULL, 'promote', NULL, 2, '{}', '', '', '2026-01-01')",  # a fork
        "('triage', 2, 1, 'promote', 1, 9, '{}', '', '', '2026-01-01')",  # a champion that is not there
        "('triage', 2, 1, 'promote', 1, 1, '{}', '', '', '2026-01-01')",  # nothing moves
    ):
        with pytest.raises(sqlite3.IntegrityError):
            raw.execute(link + values)
    edge = "INSERT INTO edges (child_id, place, role, parent_id, base) VALUES "
    for values in ("(1, 9, 'parent', 2, NULL)", "(1, 9, 'parent', 1, NULL)", "(2, 9, 'x', NULL, NULL)"):
        with pytest.raises(sqlite3.IntegrityError):
            raw.execute(edge + values)


@pytest.mark.postgres
def test_history_cannot_be_rewritten_on_postgresql(postgres_url, store, make_workshop):
    import psycopg

    workshop = make_workshop(postgres_url, store)
    workshop.ledger.register(workshop.draft("triage"))
    workshop.ledger.promote("triage", 1, expected=None, decision={})
    with psycopg.connect(postgres_url, autocommit=True) as raw:
        for table in ("versions", "edges", "promotions"):
            for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET id = id + 1"):
                with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
                    raw.execute(statement)


def test_rows_are_what_another_program_reads(sqlite_workshop, raw):
    workshop = sqlite_workshop
    version = workshop.ledger.register(workshop.draft("triage"))
    workshop.ledger.promote("triage", 1, expected=None, decision={"gates": [1, 2]}, actor="me", reason="better")
    assert raw.execute("SELECT name, number, artifact FROM versions").fetchall() == [("triage", 1, version.artifact)]
    edges = raw.execute("SELECT role, base, dataset, code FROM edges ORDER BY place").fetchall()
    dataset = version.parents[0].ref.removeprefix("dataset:")
    assert edges == [
        ("base", workshop.base, None, None),
        ("code", None, None, workshop.code),
        ("dataset", None, dataset, None),
    ]
    chain = raw.execute("SELECT seq, previous, number, decision, actor, reason FROM promotions").fetchall()
    assert chain == [(1, None, 1, '{"gates":[1,2]}', "me", "better")]
    assert raw.execute("SELECT topic, name, number FROM outbox").fetchall() == [
        ("version", "triage", 1),
        ("promotion", "triage", 1),
    ]


def test_what_is_delivered_leaves_the_outbox_once(workshop):
    workshop.ledger.register(workshop.draft("triage", 1))
    first = workshop.ledger.pending()
    workshop.ledger.register(workshop.draft("triage", 2))
    workshop.ledger.mark_delivered(first)
    workshop.ledger.mark_delivered(first)
    assert [(entry.name, entry.number) for entry in workshop.ledger.pending()] == [("triage", 2)]
