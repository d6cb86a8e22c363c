"""Reports that a person reads: one value, shown as a web page, as markdown and in the terminal.

The page is a single file that needs nothing else: style inside, figures as data, no script, nothing fetched. Whatever a
table, sentence or caption holds is text: it is escaped, and the page forbids scripts and requests on top of that.
"""

from __future__ import annotations

import math
import os
import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text


MANY_COLUMNS = 8


class Bytes(int):
    """A size, shown in KiB, MiB or GiB."""


class Seconds(float):
    """A duration."""


class Share(float):
    """A part of 1, shown in percent."""


@dataclass(frozen=True)
class Table:
    """Cells are plain values or `Bytes`, `Seconds`, `Share`; `shown` decides how each looks, here and nowhere else."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.columns):
                cells, columns = len(row), len(self.columns)
                raise ValueError(f"row {number} of table '{self.title}' has {cells} cells for {columns} columns")

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers (and at most gaps besides): such columns are set flush right."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)


@dataclass(frozen=True)
class Figure:
    """SVG or PNG bytes, and what they show in one line (also read aloud in place of the picture)."""

    image: bytes
    caption: str

    @property
    def data_uri(self) -> str:
        kind = "png" if self.image.startswith(b"\x89PNG") else "svg+xml"
        return f"data:image/{kind};base64,{b64encode(self.image).decode('ascii')}"


@dataclass(frozen=True)
class Section:
    """Sentences first, then tables, figures, and code lines to copy; then the sections under this one."""

    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    code: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class Report:
    title: str
    sections: tuple[Section, ...]
    lead: tuple[str, ...] = ()
    foot: str = ""


def shown(cell: object) -> str:
    """A value as text.

    >>> [shown(cell) for cell in (0.9432, 1234, Bytes(16 * 2**20), Seconds(75.2), Share(0.5), 2e-4, True, None)]
    ['0.943', '1,234', '16.0 MiB', '1 min 15 s', '50 %', '2e-04', 'yes', '–']
    >>> [shown(cell) for cell in (float("nan"), 12345.6, 45.61, -0.0004, Seconds(0.0042), Seconds(7300), Bytes(900))]
    ['not a number', '12,346', '45.61', '−4e-04', '4.2 ms', '2 h 2 min', '900 B']
    """
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, datetime):
        return f"{cell:%Y-%m-%d %H:%M}" + (f" {cell.tzname()}" if cell.tzinfo else "")
    if isinstance(cell, float) and not math.isfinite(cell):
        return "not a number" if math.isnan(cell) else "infinite" if cell > 0 else "−infinite"
    if isinstance(cell, int | float):
        return _number(cell).replace("-", "−", 1) if cell < 0 else _number(cell)
    return str(cell)


def _number(value: float) -> str:
    if isinstance(value, Bytes):
        return _size(value)
    if isinstance(value, Seconds):
        return _duration(value)
    if isinstance(value, Share):
        return f"{100 * value:.0f} %" if abs(value) >= 0.0995 or value == 0 else f"{100 * value:.1f} %"
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.2f}"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.0e}"


def _size(value: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,} B"


def _duration(value: float) -> str:
    if abs(value) < 1:
        return f"{1000 * value:.1f} ms"
    if abs(value) < 60:
        return f"{value:.1f} s"
    if abs(value) < 3600:
        return f"{round(value) // 60} min {round(value) % 60} s"
    return f"{round(value / 60) // 60:,} h {round(value / 60) % 60} min"


def write_report(path: Path, story: Report) -> Path:
    """The report as one HTML file, in place at once or not at all; the same report gives the same bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staging.write_text(as_html(story), encoding="utf-8", newline="\n")
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    return path


def as_html(story: Report) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment.get_template("report.html.j2").render(story=story, anchor=anchor)


def anchor(place: str, title: str) -> str:
    """Name of a section's place in the page: its number, and its words for whoever reads the address.

    >>> anchor("2.1", "What moved, and when?")
    's2-1-what-moved-and-when'
    """
    words = re.sub(r"[^a-z0-9]+", "-", title.casefold()).strip("-")
    return "-".join(filter(None, [f"s{place.replace('.', '-')}", words]))


def as_markdown(part: Section | Table, *, level: int = 2, figures: bool = True) -> str:
    """A section with all below it, or one table, as GitHub-flavoured markdown (which Prefect's artifacts render)."""
    return "\n\n".join(_blocks(part, level, figures)) + "\n"


def _blocks(part: Section | Table, level: int, figures: bool) -> Iterator[str]:
    if isinstance(part, Table):
        yield f"**{_plain(part.title)}**"
        rule = ["--:" if part.numeric(column) else ":--" for column in range(len(part.columns))]
        lines = [[_plain(name) for name in part.columns], rule, *([_plain(shown(c)) for c in row] for row in part.rows)]
        yield "\n".join(f"| {' | '.join(line)} |" for line in lines)
        if part.note:
            yield f"*{_plain(part.note)}*"
        return
    yield f"{'#' * min(level, 6)} {_plain(part.title)}"
    yield from map(_plain, part.sentences)
    for table in part.tables:
        yield from _blocks(table, level, figures)
    for figure in part.figures if figures else ():
        yield f"![{_plain(figure.caption)}]({figure.data_uri})"
    if part.code:
        fence = "`" * max(3, 1 + max((len(run) for line in part.code for run in re.findall("`+", line)), default=0))
        yield "\n".join([fence, *part.code, fence])
    for section in part.sections:
        yield from _blocks(section, level + 1, figures)


def _plain(text: str) -> str:
    """Text that markdown leaves as it is: its signs are quoted, line ends become blanks.

    >>> _plain("a|b <i> *c*")
    'a\\\\|b &lt;i&gt; \\\\*c\\\\*'
    """
    folded = " ".join(text.split())
    quoted = re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", folded)
    return quoted.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_rich(table: Table) -> RichTable:
    """The table for a terminal: numbers flush right, the text taken literally; many columns stand close."""
    from rich import box
    from rich.table import Table as RichTable

    many = len(table.columns) > MANY_COLUMNS
    out = RichTable(
        title=_visible(table.title),
        caption=_visible(table.note),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        padding=(0, 0 if many else 1),
    )
    for number, name in enumerate(table.columns):
        heading = name.replace(" ", "\n") if many else name
        out.add_column(_visible(heading), justify="right" if table.numeric(number) else "left", overflow="fold")
    for row in table.rows:
        out.add_row(*(_visible(shown(cell)) for cell in row))
    out.title_style, out.caption_style, out.caption_justify = "bold", "dim", "left"
    return out


def _visible(text: str) -> Text:
    """Text without control characters, so that a value cannot steer the terminal."""
    from rich.text import Text

    return Text("".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text))
