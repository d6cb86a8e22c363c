"""One row per event, whatever order its parts come in; every row of a file counted once, also after a kill."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from registry.traffic import Aside, Batch, Event, TrafficStore, batches

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(workshop) -> TrafficStore:
    return TrafficStore(workshop.ledger.database)


def event(number: int, source: str = "web", **columns: str) -> Event:
    return Event(f"e{number}", START + timedelta(minutes=number), source, {"text": f"text {number}", **columns})


def label(number: int, text: str) -> Event:
    return Event(f"e{number}", None, "", {"label": text})


def take(store: TrafficStore, rows: list[Event | Aside], digest: str = "a", size: int = 4, name: str = ""):
    ingest = store.begin("triage", digest * 64, name or f"{digest}.jsonl")
    numbered = [Aside(n, *row[1:]) if isinstance(row, Aside) else (n, row) for n, row in enumerate(rows, 1)]
    for batch in batches(numbered, size, after=ingest.through):
        ingest = store.add(ingest, batch)
    return store.add(ingest, Batch([], [], ingest.through), last=True)


def test_events_and_labels_in_any_order_and_any_batches_give_the_same_traffic(store) -> None:
    """The witness is a dict that is merged row by row."""
    rows = [event(n) for n in range(40)] + [label(n, f"class {n % 3}") for n in range(0, 40, 2)]
    wanted: dict[str, dict[str, str]] = {}
    for row in rows:
        wanted.setdefault(row.id, {}).update(row.columns)
    for number, digest in enumerate("abcdef"):
        Random(number).shuffle(rows)
        done = take(store, rows, digest, size=1 + 3 * number)
        assert done.rows_in == 60 == done.accepted + done.repeated + done.set_aside
    found = store.newest("triage", 100)
    assert {row.id: dict(row.columns) for row in found} == wanted
    assert [row.at for row in found] == sorted(row.at for row in found)
    assert store.rows("triage") == 40


def test_a_file_that_comes_again_changes_nothing(store) -> None:
    first = take(store, [event(n, label="x") for n in range(9)])
    assert take(store, [event(n, label="x") for n in range(9)]) == first
    other_name = take(store, [event(n, label="x") for n in range(9)], "b")
    assert (other_name.accepted, other_name.repeated, other_name.late) == (0, 9, 0)


def test_an_ingest_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(store) -> None:
    rows = [event(n % 17, label=f"class {n % 17}") for n in range(60)] + [Aside(0, "time", "missing")] * 5
    Random(3).shuffle(rows)
    whole = take(store, rows, "a", size=7)
    numbered = [Aside(n, *row[1:]) if isinstance(row, Aside) else (n, row) for n, row in enumerate(rows, 1)]
    for stop in (1, 3, 6):
        ingest = store.begin("other", f"{stop}" * 64, "a.jsonl")
        for place, batch in enumerate(batches(numbered, 7, after=ingest.through)):
            if place == stop:
                break  # the process is gone
            ingest = store.add(ingest, batch)
            store.add(ingest, batch)  # what was committed, but not known to be, comes again
        ingest = store.begin("other", f"{stop}" * 64, "a.jsonl")
        assert ingest.through == 7 * stop
        for batch in batches(numbered, 7, after=ingest.through):
            ingest = store.add(ingest, batch)
        assert ingest.rows_in == whole.rows_in == ingest.accepted + ingest.repeated + ingest.set_aside
        assert ingest.set_aside == whole.set_aside == 5
    assert store.newest("other", 99) == store.newest("triage", 99)


def test_a_row_that_contradicts_an_earlier_one_is_set_aside_with_what_it_contradicts(store) -> None:
    done = take(store, [event(1, label="a"), event(1, label="b"), label(1, "c"), event(2), event(2)._replace(at=START)])
    assert (done.accepted, done.set_aside) == (2, 3)
    assert done.reasons == {
        "label: id 'e1' came before with another label": 2,
        "time: id 'e2' came before with another time": 1,
    }
    assert store.newest("triage", 9)[0].columns["label"] == "a"


def test_a_window_holds_at_most_its_share_of_one_sender_and_only_what_is_asked_for(store) -> None:
    take(store, [event(n, "ab"[n % 10 == 0], label="x" * (n % 2)) for n in range(100)], size=50)
    sources = [row.source for row in store.newest("triage", 20, per_source=12)]
    assert (sources.count("a"), sources.count("b")) == (12, 8)
    assert len(store.newest("triage", 20)) == 20
    assert all(row.columns["label"] for row in store.newest("triage", 30, with_columns=["label"]))
    take(store, [Event(f"x{n}", START, "only", {"text": "t"}) for n in range(30)], "b")
    assert store.newest("triage", 1)[0].id == "e99"


def test_a_sender_that_is_alone_may_fill_the_window(store) -> None:
    take(store, [event(n) for n in range(30)])
    assert len(store.newest("triage", 20, per_source=5)) == 20


def test_a_sender_that_was_last_heard_of_long_ago_takes_no_room_from_the_one_that_is_left(store) -> None:
    take(store, [event(0, "elsewhere"), *(event(n) for n in range(1, 201))], size=50)
    assert len(store.newest("triage", 10, per_source=5)) == 10
    assert len(store.newest("triage", 10, per_source=5, with_columns=["text"])) == 10
    assert [row.source for row in store.newest("triage", 11, per_source=5)] == ["elsewhere", *["web"] * 5]


def test_a_malformed_row_counts_from_its_time_on_once_and_not_where_it_came_again_in_order(store) -> None:
    at = [START + timedelta(days=n) for n in range(5)]
    broken = [Aside(0, "", "not valid JSON", at[1]), Aside(0, "time", "missing", at[3], "e9"), event(1), event(1)]
    broken[3] = broken[3]._replace(at=at[4])
    take(store, broken)
    assert [store.malformed("triage", since=day) for day in (None, at[1], at[2], at[4])] == [3, 3, 2, 1]
    assert (store.malformed("triage", after=at[1]), store.malformed("triage", since=at[1], after=at[4])) == (2, 0)
    assert store.malformed("other") == 0
    later = [broken[0]._replace(at=at[4]), *broken[1:]]  # the time of a first row is that of the reading
    take(store, [*later, Aside(0, "", "not valid JSON", at[4])], "b", name="a.jsonl")  # the same file, which has grown
    assert store.malformed("triage") == 4
    take(store, [event(9)], "c")  # the row was mended
    assert store.malformed("triage") == 3


def test_malformed_rows_of_several_files_and_of_several_requests_count_each(store) -> None:
    for name in "ab":
        take(store, [Aside(0, "", "not valid JSON", START), Aside(0, "text", "missing", START, f"{name}2")], name)
    assert store.malformed("triage", since=START) == 4
    again = [Aside(0, "", "not valid JSON", START), Aside(0, "text", "missing", START, "z2")]
    take(store, again, "c", name="a.jsonl")  # another file of the name: its first row may be the same, not its second
    assert store.malformed("triage", since=START) == 5


def test_labels_that_contradict_each_other_before_their_request_has_come_are_malformed(store) -> None:
    take(store, [event(1), label(2, "x"), label(2, "y")])
    assert store.malformed("triage", since=START + timedelta(minutes=1)) == 1
    take(store, [label(3, "x"), label(3, "y")], "b")
    assert store.malformed("triage", since=START) == 2


def test_a_label_that_waits_for_its_event_is_no_part_of_a_window(store) -> None:
    take(store, [label(1, "x"), event(2)])
    assert [row.id for row in store.newest("triage", 9)] == ["e2"]
    take(store, [event(1)], "b")
    assert dict(store.newest("triage", 9)[0].columns) == {"text": "text 1", "label": "x"}
