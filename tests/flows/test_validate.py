from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def told(factory: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `factory validate` and gives what it said with the snapshot's digest as the ledger has it."""

    def run(*words: object) -> Any:
        said = factory.run("validate", *words)
        assert said.code == 0, said.err
        digest = said.out.split("snapshot ")[-1].split()[0]
        return said, digest

    return run


def strange_rows(count: int, seed: str) -> list[dict[str, str]]:
    """Rows that have nothing in common with one another or with those of another seed."""
    import hashlib

    def word(at: int) -> str:
        return hashlib.sha256(f"{seed} {at}".encode()).hexdigest()

    return [{"text": f"{word(at)[:20]} {word(at)[20:40]}", "label": ("yes", "no")[at % 2]} for at in range(count)]


def classes(factory: Any, name: str, rows: list[dict[str, str]], **changes: Any) -> Path:
    """A classification spec over rows of its own."""
    tree = {
        "task": name,
        "kind": "classification",
        "base": {"model": str(factory.base)},
        "data": {"source": str(factory.rows(f"{name}.jsonl", rows)), **changes},
    }
    return factory.yaml(name, tree)


def test_the_second_look_at_the_same_data_takes_the_snapshot_that_is_there(factory: Any, told: Any) -> None:
    rows = strange_rows(80, "again")
    spec = classes(factory, "again", rows)
    first, digest = told(spec)
    second, same = told(spec)
    assert "nothing has changed" not in first.err
    assert f"nothing has changed since snapshot {digest[:12]}" in second.err
    assert same == digest
    # other words for the same rows are another question, and so are other bytes
    other, _ = told(classes(factory, "again", rows, min_rows=31))
    assert "nothing has changed" not in other.err
    grown, newer = told(classes(factory, "again", [*rows, *strange_rows(20, "more")]))
    assert "nothing has changed" not in grown.err
    assert newer != digest


def test_a_snapshot_is_not_taken_again_once_other_rows_judge_the_task(factory: Any, told: Any) -> None:
    rows = strange_rows(80, "frozen")
    one = classes(factory, "frozen", rows[:60])
    told(one)
    assert "nothing has changed" in told(one)[0].err
    told(classes(factory, "frozen", rows))
    assert "nothing has changed" not in told(classes(factory, "frozen", rows[:60]))[0].err


def test_a_row_that_nearly_says_what_an_earlier_slice_judges_is_told(factory: Any, told: Any) -> None:
    from tasks.data.examples import key_of
    from tasks.data.splits import side_of
    from tasks.specs import SplitSpec

    rows = strange_rows(80, "near")
    told(classes(factory, "near", rows))
    judge = next(row for row in rows if side_of(key_of(row["text"]), SplitSpec()) == "test")
    close = next(text for n in range(99) if side_of(key_of(text := f"{judge['text']}{n}"), SplitSpec()) == "train")
    fresh = [*strange_rows(60, "near too"), {"text": close, "label": "yes"}]
    said, _ = told(classes(factory, "near", fresh))
    assert "warning: no near frozen row: 1 of" in said.err
    assert "the same as test of" in said.err


def test_rows_that_are_in_the_inbox_of_the_task_are_told(factory: Any, told: Any) -> None:
    rows = strange_rows(80, "inbox")
    spec = classes(factory, "inbox", rows)
    inbox = factory.home / "traffic" / "inbox"
    inbox.mkdir(parents=True)
    factory.traffic("arrived.jsonl", rows[:40]).rename(inbox / "2026-01.jsonl")
    said, _ = told(spec)
    assert "warning: traffic is not learned from" in said.err
    assert "2026-01.jsonl" in said.err


def test_a_bare_file_is_read_by_the_names_of_its_columns(factory: Any, told: Any) -> None:
    said, digest = told(factory.rows("Bare File.jsonl", strange_rows(80, "bare")))
    ((task, rows_in),) = factory.sql(f"SELECT task, rows_in FROM datasets WHERE digest LIKE '{digest}%'")
    assert (task, rows_in) == ("bare-file", 80)
    assert "80 rows in" in said.err


def test_the_report_shows_shape_checks_offenders_and_pairs_and_no_text_where_that_is_asked(
    factory: Any, told: Any
) -> None:
    rows = strange_rows(200, "page")
    rows[7]["label"] = "Yes "
    rows[9] = {"text": rows[8]["text"] + "!", "label": "no"}
    rows[11]["text"] = "<script>alert(1)</script> " + rows[11]["text"]
    rows[11]["label"] = "No "
    spec = classes(factory, "page", rows)
    said, digest = told(spec)
    page = factory.home / "reports" / f"data-page-{digest[:8]}.html"
    assert str(page) in said.err
    shown = page.read_text("utf-8")
    for words in ("Shape", "Checks", "Quarantine", "Near pairs", "label_is_spelt_as_others", "200 rows of"):
        assert words in shown
    assert "<script>" not in shown
    assert rows[8]["text"] in shown
    assert "http://" not in shown.replace("http://www.w3.org", "")
    told(spec, "--redact")
    hidden = page.read_text("utf-8")
    assert "(text left out)" in hidden
    assert not any(row["text"] in hidden for row in rows)


def test_a_suite_written_beside_a_spec_asks_the_same_of_other_rows(factory: Any, told: Any) -> None:
    rows = strange_rows(80, "suite")
    rule = {"expect": "expect_column_values_to_match_regex", "arguments": {"column": "text", "regex": "^[0-9a-f ]+$"}}
    spec = classes(factory, "suite", rows, expectations=[{**rule, "severity": "warning"}])
    suite = factory.folder / "suite.json"
    said, _ = told(spec, "--suite", suite)
    assert f"suite {suite}" in said.out
    written = json.loads(suite.read_text())
    kinds = [(kept["type"], str(kept.get("severity", "critical"))) for kept in written["expectations"]]
    assert ("expect_column_values_to_match_regex", "warning") in kinds
    broken = [*rows, {"text": "not hexadecimal", "label": "yes"}]
    again, _ = told(classes(factory, "suite-read", broken, suite="suite.json"))
    assert "warning: expect column values to match regex: 1 of 81" in again.err


def test_data_docs_are_built_on_request(factory: Any, told: Any) -> None:
    spec = classes(factory, "docs", strange_rows(80, "docs"))
    folder = factory.folder / "data-docs"
    said, _ = told(spec, "--docs", folder)
    assert f"docs {folder / 'index.html'}" in said.out
    assert any("must never be null" in page.read_text("utf-8") for page in folder.rglob("*.html"))


def test_a_suite_and_pages_are_refused_a_place_where_none_can_be(factory: Any) -> None:
    spec = classes(factory, "places", strange_rows(80, "places"))
    for option, place in (("--suite", factory.folder), ("--suite", spec / "suite.json"), ("--docs", spec)):
        said = factory.run("validate", spec, option, place)
        assert said.code == 2, said.err
        assert said.lines[-1].startswith(f"E-SPEC-049 {option} {place}: cannot be written: ")


def test_a_set_that_is_through_in_three_seconds_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import data_words
    from flows.progress import Voice

    bars: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Voice, "bar", lambda self, *said: bars.append(said))
    time = iter((0.0, 1.0, 10.0, 12.0))
    pace = data_words.Pace(clock=lambda: next(time))
    pace("reading", 5, 10)
    assert bars == []
    pace("near pairs", 0, 10)
    pace("near pairs", 5, 10)
    assert bars[-1] == ("data: near pairs", 5, 10, 2.0)
