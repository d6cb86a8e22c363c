from __future__ import annotations

import doctest
import io
import json
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import flows.report
from flows.report import (
    Bytes,
    Figure,
    Report,
    Seconds,
    Section,
    Share,
    Table,
    as_html,
    as_markdown,
    as_rich,
    shown,
    write_report,
)

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
NASTY = "<script>alert('x')</script> {{ 7*7 }} {% for %} & \"quoted\" | `tick` \x1b[31m"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: tags in balance, attributes, cells and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in {"td", "th"}:
            self.cells[-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [found[name] or "" for seen, found in self.seen if seen == tag and name in found]


def story(text: str = "plain") -> Report:
    table = Table(text, (text, "score", "size"), ((text, 0.5, Bytes(2048)), (None, None, None)), note=text)
    deep = Section(text, sections=(Section(text, sentences=(text,), sections=(Section("deep", code=("x",)),)),))
    return Report(
        text,
        (
            Section("Twice", (text, "second"), (table, Table("empty", ("a",), ())), (Figure(SVG, text),), (text, "b")),
            Section("Twice", sections=(deep, deep)),
        ),
        lead=(text,),
        foot=text,
    )


def test_every_example_in_a_docstring_holds() -> None:
    outcome = doctest.testmod(flows.report)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_the_page_is_well_formed_and_every_line_of_the_contents_leads_to_one_place() -> None:
    page = Page(as_html(story()))
    places = page.attributes("section", "id")
    assert len(places) == len(set(places)) == 8
    targets = [link.removeprefix("#") for link in page.attributes("a", "href")]
    assert set(targets) == set(places)
    assert all(link.startswith("#") for link in page.attributes("a", "href"))


def test_nothing_is_fetched_and_nothing_runs() -> None:
    page = Page(as_html(story()))
    assert {tag for tag, _ in page.seen}.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert all(uri.startswith("data:image/") for uri in page.attributes("img", "src"))
    (policy,) = [found["content"] for tag, found in page.seen if found.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in as_html(story()).replace("http-equiv", "")


def test_text_stays_text_wherever_it_stands() -> None:
    html = as_html(story(NASTY))
    page = Page(html)
    plain = Page(as_html(story()))
    assert [tag for tag, _ in page.seen] == [tag for tag, _ in plain.seen]
    assert page.cells.count(NASTY) == plain.cells.count("plain") == 2
    assert "<script" not in html
    assert "49" not in "".join(page.words)


def test_the_same_cell_looks_the_same_in_the_page_in_markdown_and_in_the_terminal() -> None:
    cells = (0.9432, 1234, Bytes(16 * 2**20), Seconds(75.2), Share(0.5), 2e-4, True, None, "text", float("nan"))
    table = Table("one", tuple("abcdefghij"), (cells,))
    expected = [shown(cell) for cell in cells]
    page = Page(as_html(Report("r", (Section("s", tables=(table,)),))))
    assert page.cells[10:] == expected
    line = as_markdown(table).splitlines()[4]
    assert [cell.strip() for cell in line.strip("|").split("|")] == expected
    screen = io.StringIO()
    Console(file=screen, width=200).print(as_rich(table))
    assert all(text in screen.getvalue() for text in expected)


@given(
    st.one_of(
        st.integers(), st.floats(), st.floats().map(Seconds), st.integers().map(Bytes), st.floats(0, 1).map(Share)
    )
)
@settings(max_examples=300, deadline=None)
def test_every_number_has_a_short_text_of_one_line(number: float) -> None:
    text = shown(number)
    assert text
    assert "nan" not in text.replace("not a number", "")
    if -1e12 < number < 1e12:
        assert len(text) <= 24


@given(st.floats(0.0005, 0.9995))
@settings(max_examples=100, deadline=None)
def test_a_score_is_shown_to_the_nearest_thousandth(score: float) -> None:
    if score >= 0.001:
        assert abs(float(shown(score)) - score) <= 0.0005 + 1e-12


def test_a_pipe_or_a_line_end_does_not_break_a_markdown_row() -> None:
    table = Table("t", ("a", "b"), (("x|y\nz", "<b>&"), ("*bold*", "`code`")))
    lines = as_markdown(table).strip().splitlines()[2:]
    assert lines[2:] == [r"| x\|y z | &lt;b&gt;&amp; |", r"| \*bold\* | \`code\` |"]


def test_code_in_markdown_ends_where_it_should() -> None:
    text = as_markdown(Section("s", code=("a ``` b", "c")))
    assert "````\na ``` b\nc\n````" in text


def test_markdown_nests_as_the_sections_do_and_carries_the_figures() -> None:
    text = as_markdown(Section("a", figures=(Figure(SVG, "cap"),), sections=(Section("b", sections=(Section("c"),)),)))
    assert [line for line in text.splitlines() if line.startswith("#")] == ["## a", "### b", "#### c"]
    picture = text.split("base64,")[1].split(")")[0]
    assert b64decode(picture) == SVG
    assert "data:" not in as_markdown(Section("a", figures=(Figure(SVG, "cap"),)), figures=False)


def test_a_value_cannot_steer_the_terminal() -> None:
    screen = io.StringIO()
    Console(file=screen, width=80, force_terminal=True, no_color=True).print(
        as_rich(Table("t", ("a",), (("\x1b[31mred [bold]x[/bold] \x07",),)))
    )
    assert "\x1b[31m" not in screen.getvalue()
    assert "\x07" not in screen.getvalue()
    assert "[bold]x[/bold]" in screen.getvalue()


def test_many_columns_stand_close_with_their_names_in_lines() -> None:
    names, values = tuple(f"long name {n}" for n in range(14)), tuple(range(1000, 1014))
    screen = io.StringIO()
    Console(file=screen, width=200).print(as_rich(Table("t", names, (values,))))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 14 * (len("1,000") + 1) + 1
    assert any(line.split() == [f"{value:,}" for value in values] for line in lines)


def test_numbers_stand_flush_right_and_words_flush_left() -> None:
    table = Table("t", ("words", "numbers", "mixed", "flags"), (("a", 1, "x", True), ("b", None, 2, False)))
    assert [table.numeric(column) for column in range(4)] == [False, True, False, False]
    assert as_markdown(table).splitlines()[3] == "| :-- | --: | :-- | :-- |"


def test_a_row_of_another_width_is_refused_with_its_number() -> None:
    with pytest.raises(ValueError, match=r"row 2 of table 't' has 1 cells for 2 columns"):
        Table("t", ("a", "b"), ((1, 2), (1,)))


def test_the_same_report_is_the_same_file_and_a_failed_one_leaves_the_old(tmp_path: Path) -> None:
    path = write_report(tmp_path / "deep" / "report.html", story())
    first = path.read_bytes()
    assert write_report(path, story()).read_bytes() == first

    class Unspeakable:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    broken = Report("r", (Section("s", tables=(Table("t", ("a",), ((Unspeakable(),),)),)),))
    with pytest.raises(RuntimeError):
        write_report(path, broken)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_png_and_svg_are_told_apart() -> None:
    assert Figure(b"\x89PNG\r\n\x1a\n...", "").data_uri.startswith("data:image/png;base64,")
    assert Figure(SVG, "").data_uri.startswith("data:image/svg+xml;base64,")


def test_the_values_load_without_torch_prefect_or_mlflow() -> None:
    code = "import sys, json, flows.report; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    assert loaded.isdisjoint({"torch", "prefect", "mlflow", "jinja2", "rich", "numpy", "registry"})
