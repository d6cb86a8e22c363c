from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from factory_home import ROWS


@pytest.fixture(scope="module")
def desk_home(new_factory: Any, desk: Any) -> Any:
    """A home in which intent is served by a version that learned nothing: what counts here is what comes in."""
    made = new_factory()
    spec = made.spec(desk["intent"], training__steps=1, evaluation={"gates": {"min_rows": 30, "beat_base_by": -1}})
    with made.active(), pytest.MonkeyPatch.context() as patch:
        from flows.train import train

        patch.setattr("tasks.export.answer.answer_in_fresh_process", lambda _, asked, **__: ("yes",) * len(asked))
        assert train(str(spec)).promoted
    return made


def counts(home: Any, source: str) -> tuple[int, ...]:
    query = "SELECT rows_in, accepted, repeated, late, set_aside FROM traffic_ingests WHERE source = ?"
    ((found),) = home.sql(query, source)
    return tuple(found)


def test_rows_and_late_labels_are_taken_in_and_what_is_malformed_is_named(desk_home: Any, desk: Any) -> None:
    rows = desk["intent"].rows(60, seed=71)
    unlabelled = desk_home.traffic("week.jsonl", rows, labelled=False)
    with unlabelled.open("a") as file:
        file.write('{"id": "no time", "text": "a b"}\n{"id": \n')
    said = desk_home.run("traffic", "add", "intent", unlabelled)
    assert said.code == 0, said.err
    assert said.out.startswith("62 rows in = 60 new + 0 repeated + 2 set aside; 60 requests of intent are known")
    assert "1 x time: missing" in said.out
    assert "not valid JSON" in said.out
    labels = [{"id": f"week.jsonl {place}", "label": row["label"]} for place, row in enumerate(rows)]
    said = desk_home.run("--json", "traffic", "add", "intent", desk_home.rows("labels.jsonl", labels[::-1]))
    assert json.loads(said.out)["result"]["ingest"]["late"] == 60
    assert counts(desk_home, "labels.jsonl") == (60, 0, 60, 60, 0)
    ((known,),) = desk_home.sql("SELECT count(*) FROM traffic WHERE json_extract(columns, '$.label') IS NOT NULL")
    assert known == 60


def test_a_retrain_reads_labelled_requests_that_its_champion_has_not_met_and_none_before_the_day_that_is_named(
    desk_home: Any, desk: Any
) -> None:
    """The champion has met the rows that it was trained with; one of them comes again with another label."""
    from flows.fresh import fresh_rows, window_file
    from flows.wiring import opened
    from tasks.errors import DataRefused

    learned = desk["intent"].rows(ROWS, seed=0)
    known = {row["text"] for row in learned}
    rows = [row for row in desk["intent"].rows(30, seed=72) if row["text"] not in known]
    other = next(row["label"] for row in learned if row["label"] != learned[7]["label"])
    rows.append({**learned[7], "label": other})
    path = desk_home.traffic("march.jsonl", [*rows, *learned[:5]])
    path.write_text(path.read_text().replace('"2026-01-01', '"2026-03-01'))
    assert desk_home.run("traffic", "add", "intent", path).code == 0
    with desk_home.active():
        home = opened()
        champion = home.ledger.champion("intent")
        march, everything = (
            [json.loads(line) for line in Path(window_file(home, "intent", rows)).read_text().splitlines()]
            for rows, _ in (
                fresh_rows(home, champion, None, since) for since in (datetime(2026, 3, 1, tzinfo=UTC), None)
            )
        )
        other = {**champion.spec, "data": {**champion.spec["data"], "prompt": "{text} {shop} intent:"}}
        with pytest.raises(DataRefused, match="no request is labelled that it has not met"):
            fresh_rows(home, replace(champion, spec=other))  # no request was taken in with its shop
        with pytest.raises(DataRefused, match="no request is labelled that it has not met since 2027-01-01"):
            fresh_rows(home, champion, None, datetime(2027, 1, 1, tzinfo=UTC))
    assert sorted(row["text"] for row in march) == sorted(row["text"] for row in rows)
    assert all(row["time"].startswith("2026-03-01") for row in march)
    assert len(everything) >= len(march)


def test_a_killed_ingest_goes_on_from_a_pipe_and_ends_as_if_nothing_had_happened(desk_home: Any, desk: Any) -> None:
    """SIGKILL after the second of three batches; the same bytes come again, through a pipe."""
    rows = desk["intent"].rows(300, seed=72)
    start = datetime(2026, 2, 1, tzinfo=UTC)
    lines = [
        {"id": f"n{n}", "time": (start + timedelta(seconds=n)).isoformat(), **rows[n % 300]} for n in range(12_000)
    ]
    path = desk_home.rows("many.jsonl", lines)
    killed = desk_home.finish(
        desk_home.start("traffic", "add", "intent", path, FACTORY_FAILPOINT="traffic.after_batch=kill@2")
    )
    assert killed.code == -9
    assert counts(desk_home, "many.jsonl") == (10_000, 10_000, 0, 0, 0)
    desk_home.sql("SELECT 1")
    with _stdin(path):
        _release(desk_home)
        said = desk_home.run("traffic", "add", "intent", "-")
    assert said.code == 0, said.err
    assert any("going on after row 10,000" in line for line in said.lines)
    assert counts(desk_home, "many.jsonl") == (12_000, 12_000, 0, 0, 0)
    ((ids,),) = desk_home.sql("SELECT count(*) FROM traffic WHERE event LIKE 'n%'")
    assert ids == 12_000


def test_a_second_ingest_of_a_task_waits_its_turn(desk_home: Any, desk: Any) -> None:
    from flows.wiring import opened

    path = desk_home.traffic("turn.jsonl", desk["intent"].rows(5, seed=73))
    with desk_home.active():
        ledger = opened().ledger
        lease = ledger.take_lease("traffic:intent", holder="somebody else", seconds=60)
        said = desk_home.run("traffic", "add", "intent", path)
        path = put_in_inbox(desk_home, "intent", path)
        watched = desk_home.run("watch")
        ledger.release_lease(lease)
    assert said.code == 6
    assert said.lines[-1].startswith("E-DRIFT-022 intent: another process takes in its traffic")
    assert watched.code == 0, watched.err
    assert "turn.jsonl: another process takes in its traffic, so it is taken in next time" in watched.err
    assert desk_home.run("traffic", "add", "intent", path).code == 0


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [("nothing.jsonl", 3, "E-DRIFT-003"), ("table.xlsx", 3, "E-DRIFT-002"), ("columns.csv", 3, "E-DRIFT-004")],
)
def test_what_is_no_traffic_is_one_line(desk_home: Any, name: str, code: int, line: str) -> None:
    path = Path(desk_home.folder / name)
    if not name.startswith("nothing"):
        path.write_text("id,time,words\n1,2026-01-01,a\n")
    said = desk_home.run("traffic", "add", "intent", path)
    assert (said.code, said.lines[-1].split(" ")[0]) == (code, line)


def served_as(home: Any, name: str) -> Any:
    """Another task that is served by what serves intent."""
    from flows.wiring import opened
    from registry.fingerprint import fingerprint
    from registry.records import VersionDraft

    with home.active():
        ledger = opened().ledger
        known = ledger.champion("intent")
        same = {field: getattr(known, field) for field in ("artifact", "base", "code", "parents")}
        spec = {**known.spec, "task": name}
        made = ledger.register(
            VersionDraft(name=name, kind="adapter", version_key=fingerprint(name), spec=spec, **same)
        )
        return ledger.promote(name, made.number, expected=None, decision={})


def put_in_inbox(home: Any, task: str, path: Path) -> Path:
    folder = home.home / "traffic" / task
    folder.mkdir(parents=True, exist_ok=True)
    return path.rename(folder / path.name)


def test_a_bad_file_in_an_inbox_keeps_nothing_else_from_being_taken_in_and_judged(desk_home: Any, desk: Any) -> None:
    """A table that was cut off, pages of bytes, a nested column and a folder lie before what is good."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    served_as(desk_home, "zebra")
    rows = [{"id": str(n), "time": "2026-01-01", **row} for n, row in enumerate(desk["intent"].rows(50, seed=81))]
    nested, cut, noise = (desk_home.folder / name for name in ("b-nested.parquet", "a-cut.parquet", "c-noise.csv"))
    parquet.write_table(pa.Table.from_pylist([{**row, "tags": ["x"]} for row in rows]), nested)
    cut.write_bytes(nested.read_bytes()[:-40])
    noise.write_bytes(bytes(range(256)) * 100)
    bad = [put_in_inbox(desk_home, "intent", path) for path in (cut, nested, noise)]
    (desk_home.home / "traffic" / "intent" / "folder.csv").mkdir()
    for task in ("intent", "zebra"):
        put_in_inbox(desk_home, task, desk_home.traffic(f"inbox of {task}.jsonl", desk["intent"].rows(60, seed=82)))
    said = desk_home.run("watch")
    assert said.code == 3
    assert [line.split(": ")[0] for line in said.lines[-3:]] == [
        f"E-DRIFT-005 {bad[0]}",
        f"E-DRIFT-006 {bad[1]}",
        f"E-DRIFT-005 {bad[2]}",
    ]
    assert "column tags holds list<element: string>; a plain value in each row is expected" in said.lines[-2]
    for task in ("intent", "zebra"):
        assert counts(desk_home, f"inbox of {task}.jsonl") == (60, 60, 0, 0, 0)
        assert len(desk_home.sql("SELECT id FROM findings WHERE task = ?", task)) == 1
    for path in bad:
        path.unlink()
    assert desk_home.run("watch").code == 0


def test_the_verdict_that_is_told_of_a_window_is_the_one_that_stands_whatever_became_known_besides(
    desk_home: Any, desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Malformed rows come to the same window, or too few labels of other requests: each verdict is told and remembered,
    and the window that has caused a retrain is called for no more."""
    from flows import watch
    from flows.claims import ASKS, claim
    from flows.wiring import opened

    served_as(desk_home, "yak")
    heard: list[Any] = []
    monkeypatch.setattr(watch, "emit_event", lambda name, **event: heard.append(event["payload"]))
    path = desk_home.traffic("june.jsonl", desk["moved"].rows(300, seed=83))
    assert desk_home.run("traffic", "add", "yak", path).code == 0
    seen = []
    with desk_home.active():
        home = opened()
        champion = home.ledger.champion("yak")
        assert champion is not None
        window = watch.newest_arrivals(home, champion)
        for malformed, needed in ((0, 60), (200, 60), (0, 60), (0, 1000), (0, 60)):
            monkeypatch.setattr(watch, "rows_needed", lambda spec, needed=needed: needed)
            seen.append(watch.watched(home, champion, replace(window, malformed=malformed), None))
            if len(seen) == 1:
                claim(home, champion, heard[0])
    assert [one.report.action for one in seen] == [ASKS, "stop and look", ASKS, "watch", ASKS]
    assert [(one.finding.verdict, one.finding.action) for one in seen] == [
        (one.report.verdict, one.report.action) for one in seen
    ]
    assert len({one.finding.window_digest for one in seen}) == len(heard) == 1


def dated(path: Path, day: str) -> Path:
    path.write_text(path.read_text().replace('"2026-01-01', f'"2026-01-{day}'))
    return path


def test_malformed_rows_are_judged_with_the_requests_that_they_came_with_however_they_were_taken_in(
    desk_home: Any, desk: Any
) -> None:
    """100 of the first 200 rows are malformed: a fault at every watch until newer requests fill the window. The same
    rows in one file, judged by itself, are the same."""
    served_as(desk_home, "ox")
    old = dated(desk_home.traffic("old.jsonl", desk["intent"].rows(100, seed=84)), "02")
    old.write_text(old.read_text().replace("}\n", "}\n{\n"))
    new = dated(desk_home.traffic("new.jsonl", desk["intent"].rows(300, seed=85)), "03")
    whole = desk_home.folder / "whole.jsonl"
    whole.write_text(old.read_text() + new.read_text())

    def told(*words: object) -> str:
        said = desk_home.run("--json", "watch", "ox", *words)
        (seen,) = json.loads(said.out)["result"]
        return str(seen["finding"]["report"]["sentence"])

    assert "of the traffic rows are malformed (100 of 200)" in told("--traffic", old)
    assert "malformed" not in told("--traffic", whole)
    assert desk_home.run("traffic", "add", "ox", old).code == 0
    for _ in range(2):
        assert "of the traffic rows are malformed (100 of 200)" in told()
    put_in_inbox(desk_home, "ox", new)
    assert "malformed" not in told()
    assert desk_home.sql("SELECT DISTINCT rows FROM windows WHERE task = 'ox' ORDER BY rows") == [(100,), (300,)]


def test_labels_in_rows_of_their_own_are_joined_with_the_requests_of_a_file_that_is_watched_or_learned_from(
    desk_home: Any, desk: Any
) -> None:
    from flows.fresh import fresh_rows, window_file
    from flows.watch import arrived
    from flows.wiring import opened

    rows = desk["intent"].rows(80, seed=86)
    path = desk_home.traffic("apart.jsonl", rows, labelled=False)
    labels = [{"id": f"apart.jsonl {n}", "label": row["label"]} for n, row in enumerate(rows[:70])]
    path.write_text(path.read_text() + desk_home.rows("only labels.jsonl", labels).read_text())
    with desk_home.active():
        home = opened()
        champion = home.ledger.champion("intent")
        assert champion is not None
        window = arrived(champion, str(path))
        known, aside = fresh_rows(home, champion, str(path))
        joined = Path(window_file(home, "intent", known))
    assert (len(window.rows), sum(row.labelled for row in window.rows), window.malformed) == (80, 70, 0)
    assert (len(known), len(aside)) == (70, 0)
    kept = [json.loads(line) for line in joined.read_text().splitlines()]
    assert [(row["text"], row["label"]) for row in kept] == [(row["text"], row["label"]) for row in rows[:70]]


def _stdin(path: Path) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def block() -> Iterator[None]:
        with path.open("rb") as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", type("Pipe", (), {"buffer": file})())
            yield

    return block()


def _release(home: Any) -> None:
    """The lease of the killed process runs out after two minutes; the test does not wait."""
    import sqlite3

    with sqlite3.connect(home.home / "ledger.db") as connection:
        connection.execute("UPDATE leases SET expires_seconds = 0 WHERE name = 'traffic:intent'")


def test_a_data_set_that_holds_requests_of_the_task_is_told(desk_home: Any, desk: Any) -> None:
    asked = desk_home.traffic("asked.jsonl", desk["intent"].rows(80, seed=0))
    assert desk_home.run("traffic", "add", "intent", asked).code == 0
    said = desk_home.run("validate", desk_home.spec(desk["intent"]))
    assert "warning: traffic is not learned from" in said.err
    assert "1.00 the same as the task's traffic" in said.err


def test_a_window_begins_after_the_newest_request_that_its_champion_learned_from(desk_home: Any, desk: Any) -> None:
    """It would be right on those that it knows, and a fall would be hidden."""
    from flows.watch import newest_arrivals
    from flows.wiring import opened

    path = desk_home.traffic("april.jsonl", desk["intent"].rows(40, seed=73))
    path.write_text(path.read_text().replace('"2026-01-01', '"2026-04-01'))
    assert desk_home.run("traffic", "add", "intent", path).code == 0
    with desk_home.active():
        home = opened()
        champion = home.ledger.champion("intent")
        assert champion is not None
        everything = newest_arrivals(home, champion).rows
        moments = sorted(row.at for row in everything if row.at is not None)
        taught = {**champion.spec, "retrain": {**champion.spec["retrain"], "through": moments[-11].isoformat()}}
        after = newest_arrivals(home, replace(champion, spec=taught)).rows
    assert len(everything) > 40
    assert sorted(row.at for row in after if row.at is not None) == moments[-10:]


def test_a_retrain_learns_from_the_checked_rows_of_a_file_that_are_late_enough_and_short_enough(
    desk_home: Any, desk: Any
) -> None:
    """The window holds neither a repeat, nor what was set aside, nor older requests, nor one longer than a line."""
    from flows.fresh import fresh_rows, window_file
    from flows.wiring import opened
    from tasks.errors import DataRefused

    rows = desk["moved"].rows(80, seed=76)
    path = desk_home.traffic("checked.jsonl", rows)
    lines = path.read_text().splitlines()
    march = [line.replace('"2026-01-01', '"2026-03-01') for line in lines[:70]]
    odd = [
        march[3],  # a repeat
        march[4].replace('"2026-03-01', '"1999-03-01'),
        march[5].replace('checked.jsonl 5"', 'long"').replace('"text": "', '"text": "' + "ä" * 600_000),
    ]
    assert '"long"' in odd[2]
    path.write_text("\n".join([*march, *odd, *lines[70:]]) + "\n")
    with desk_home.active():
        home = opened()
        champion = home.ledger.champion("intent")
        found, aside = fresh_rows(home, champion, str(path), datetime(2026, 3, 1, tzinfo=UTC))
        window = [json.loads(line) for line in Path(window_file(home, "intent", found)).read_text().splitlines()]
        with pytest.raises(DataRefused, match="no request is labelled since 2027-01-01 00:00; 1 are malformed"):
            fresh_rows(home, champion, str(path), datetime(2027, 1, 1, tzinfo=UTC))
    assert [row["text"] for row in window] == [row["text"] for row in rows[:70]]
    assert [row["label"] for row in window] == [row["label"] for row in rows[:70]]
    assert len(aside) == 1


def test_a_retrain_with_too_few_labelled_rows_is_refused_before_anything_is_claimed_frozen_or_trained(
    desk_home: Any, desk: Any
) -> None:
    """The gates want 30 rows that judge; half of 59 are fewer. Who is not to be served need not be judged."""
    from flows.retrain import retrain
    from tasks.errors import DataRefused

    path = desk_home.traffic("few.jsonl", desk["moved"].rows(59, seed=74))
    unlabelled = desk_home.traffic("unknown.jsonl", desk["moved"].rows(40, seed=75), labelled=False)
    path.write_text(path.read_text() + unlabelled.read_text())
    finding = {"version": "intent:1", "window": "0" * 64, "verdict": "input shift", "traffic": str(path)}
    before = desk_home.remembered()
    with desk_home.active(), pytest.raises(DataRefused, match="59 fresh rows are labelled, 60 are needed") as refused:
        retrain("intent", finding=finding)
    assert refused.value.exit_code == 3
    assert [problem.code for problem in refused.value.problems] == ["E-DRIFT-024"]
    assert desk_home.remembered() == before
    assert desk_home.sql("SELECT count(*) FROM retrain_claims WHERE task = 'intent'") == [(0,)]
    assert desk_home.litter() == []
