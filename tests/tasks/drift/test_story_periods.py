"""A story's periods, from a small file of one's own."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ADAPTER = {"kind": "classification", "data": {"text": "said", "label": "meant"}}


@pytest.fixture(scope="module")
def periods() -> Any:
    place = Path("benchmarks/story_periods.py").resolve()
    spec = importlib.util.spec_from_file_location("story_periods", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["story_periods"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """90 rows of each of two shops; the years go by."""
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["said", "meant", "shop", "day"])
        for n in range(180):
            shop = "north" if n % 2 else "south"
            rows.writerow([f"words {n}", f"{shop} {n % 3}", shop, f"20{10 + n // 45}-05-01"])
    return tmp_path


def test_periods_by_value_hold_what_was_asked_and_no_row_twice(periods: Any, data: Path) -> None:
    story = {
        "name": "shops",
        "data": "rows.csv",
        "column": "shop",
        "adapter": ADAPTER,
        "periods": [{"north": 40}, {"north": 20, "south": 30}],
        "relabel": {1: {"north 1": "north 2"}},
    }
    first, second = periods.periods_of(story, data, seed=0)
    assert [(len(p.traffic), len(p.held_out)) for p in (first, second)] == [(28, 12), (35, 15)]
    texts = [row["said"] for p in (first, second) for row in (*p.traffic, *p.held_out)]
    assert len(set(texts)) == len(texts) == 90
    shops = Counter(row["meant"].split()[0] for row in (*second.traffic, *second.held_out))
    assert shops == {"north": 20, "south": 30}
    assert "north 1" in {row["meant"] for row in first.traffic}
    assert "north 1" not in {row["meant"] for row in second.traffic}
    assert {row["meant"] for row in periods.still_true([first, second])} == {"north 0", "north 2"}
    assert [row["meant"] for row in second.as_now([{"said": "", "meant": "north 1"}])] == ["north 2"]
    assert (
        periods.periods_of(story, data, seed=1)[0].traffic
        != first.traffic
        == periods.periods_of(story, data, 0)[0].traffic
    )


def test_periods_by_time_part_all_rows_where_they_begin(periods: Any, data: Path) -> None:
    story = {"name": "years", "data": "rows.csv", "column": "day", "adapter": ADAPTER, "periods": ["2010", "2012"]}
    first, second = periods.periods_of(story, data, seed=0)
    assert (len(first.traffic) + len(first.held_out), len(second.traffic) + len(second.held_out)) == (90, 90)
    early = {f"words {n}" for n in range(90)}
    assert {row["said"] for row in (*first.traffic, *first.held_out)} == early


def test_a_file_with_too_few_rows_of_a_value_is_refused(periods: Any, data: Path) -> None:
    story = {"name": "shops", "data": "rows.csv", "column": "shop", "adapter": ADAPTER, "periods": [{"north": 91}]}
    with pytest.raises(ValueError, match="90 rows of 'north' left, 91 needed"):
        periods.periods_of(story, data, seed=0)


def test_a_story_of_written_answers_takes_the_rows_that_it_asks_for_and_writes_them_its_own_way(
    periods: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [("walk", "WALK"), ("walk twice", "WALK WALK"), ("walk left", "LEFT WALK"), ("walk thrice", "WALK " * 3)]
    rows = [
        {"input": f"{asked} {n}", "target": said.strip(), "domain": "short" if n % 2 else "long", "split": "train"}
        for n in range(40)
        for asked, said in commands
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    story = {
        "name": "commands",
        "data": "rows.jsonl",
        "where": {"domain": "short"},
        "column": "split",
        "asked": "input",
        "answered": "target",
        "without": ["thrice"],
        "longest": 1,
        "written": {"WALK": "w"},
        "held_out": 0.25,
        "periods": [{"train": 20}],
        "adapter": {"base": {"model": "small"}, "data": {"prompt": "{input}", "completion": "{target}"}},
    }
    (only,) = periods.periods_of(story, tmp_path, seed=0)
    assert (len(only.traffic), len(only.held_out)) == (15, 5)
    found = {(row["input"].rpartition(" ")[0], row["target"]) for row in (*only.traffic, *only.held_out)}
    assert found == {("walk", "w")}
    story |= {"longest": 3, "periods": [{"train": 60}]}
    (only,) = periods.periods_of(story, tmp_path, seed=0)
    found = {(row["input"].rpartition(" ")[0], row["target"]) for row in (*only.traffic, *only.held_out)}
    assert found == {("walk", "w"), ("walk twice", "w w"), ("walk left", "LEFT w")}
    monkeypatch.setenv("FACTORY_DATA", "/data")
    monkeypatch.setenv("FACTORY_MINILM", "/encoder")
    assert periods.base_of(story) == {"model": "/data/small"}
    assert periods.base_of({"adapter": {"base": {"quantization": "none"}}}) == {
        "model": "/encoder",
        "quantization": "none",
    }
