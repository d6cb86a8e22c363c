"""The page says what the ledger says, in columns from what came first, and cannot be broken out of."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from flows.lineage_page import columns_of, in_script, write_page
from registry.lineage import Lineage, Link, Node, as_json
from tasks.errors import SpecRefused


def drawn(names: list[str], links: list[tuple[str, str]], label: str = "") -> Lineage:
    nodes = {name: Node(name, "adapter", label or name, {"withdrawn": False}) for name in names}
    return Lineage(names[-1], "up", nodes, tuple(Link(child, "start", parent) for child, parent in links))


def test_every_link_runs_from_a_column_to_a_later_one_and_no_column_is_empty() -> None:
    chance = random.Random(0)
    for _ in range(50):
        names = [f"m:{place}" for place in range(1, chance.randint(2, 30))]
        links = [(names[c], names[p]) for c in range(len(names)) for p in range(c) if chance.random() < 0.2]
        columns = columns_of(drawn(names, links))
        assert all(columns[child] > columns[parent] for child, parent in links)
        assert set(columns.values()) == set(range(max(columns.values()) + 1))


def test_the_page_holds_the_whole_lineage_in_one_file_and_fetches_nothing(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script> & 'x'"
    lineage = drawn(["a:1", "b:1"], [("b:1", "a:1")], evil)
    text = write_page(lineage, tmp_path / "new" / "page.html").read_text()
    assert re.findall(r"(?:src|href)=|https?://(?!www\.w3\.org/2000/svg)", text) == []
    assert text.count("<script>") == text.count("</script>") == 1
    (data,) = re.findall(r"^const data = (.*);$", text, re.MULTILINE)
    found = json.loads(data)
    assert [{k: v for k, v in node.items() if k != "column"} for node in found["nodes"]] == as_json(lineage)["nodes"]
    assert found["links"] == as_json(lineage)["links"]
    assert json.loads(in_script(evil)) == evil


def test_a_page_is_refused_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for path in (
        tmp_path,
        tmp_path / "file" / "page.html",
        tmp_path / "file" / "a" / "page.html",
        tmp_path / ("a" * 300),
    ):
        with pytest.raises(SpecRefused, match=r"^E-SPEC-049 --page ") as refused:
            write_page(drawn(["a:1"], []), path)
        assert len(refused.value.problems) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}.*"))
    assert (tmp_path / "file").read_text() == "kept"
