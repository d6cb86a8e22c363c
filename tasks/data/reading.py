"""A source into rows: a file, a folder of files, a hub id or a query. What is hashed is what is parsed."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from tasks.data.admission import Quarantined, RowUnit, shown
from tasks.data.formats import Parsed, read_arrow, read_csv, read_jsonl, read_parquet
from tasks.errors import DataRefused, Problem, SpecRefused
from tasks.specs import DataSpec

OnBytes = Callable[[int, int], None]
Reader = Callable[[BinaryIO, str, str], Parsed]
FORMATS: MappingProxyType[str, tuple[str, Reader, RowUnit]] = MappingProxyType(
    {
        ".jsonl": ("JSONL", read_jsonl, "line"),
        ".ndjson": ("JSONL", read_jsonl, "line"),
        ".csv": ("CSV", read_csv, "line"),
        ".parquet": ("Parquet", read_parquet, "record"),
        ".arrow": ("Arrow", read_arrow, "record"),
        ".feather": ("Arrow", read_arrow, "record"),
    }
)
HEAD_BYTES = 4 * 2**20
_REMEDY = "name a .jsonl, .csv, .parquet or .arrow file, or a folder of one of them"


@dataclass(frozen=True)
class Rows:
    """What a source holds. `places[i]` is (file, row) of `records[i]`; rows are lines from 1 where `unit` is "line".

    `columns` is the union over all files, in order of first sight; `filtered` rows did not meet `where`.
    """

    columns: tuple[str, ...]
    records: list[dict[str, Any]]
    digest: str
    source: str
    places: list[tuple[str, int]]
    malformed: tuple[Quarantined, ...]
    unit: RowUnit
    filtered: int

    @property
    def rows_in(self) -> int:
        return len(self.records) + len(self.malformed)

    def where(self, file: str, row: int, column: str = "") -> str:
        """The place as a message names it.

        >>> Rows(("text",), [], "", "/data", [], (), "line", 0).where("a.csv", 7, "text")
        '/data/a.csv:7:text'
        """
        path = self.source if not file or Path(self.source).name == file else f"{self.source}/{file}"
        number = f"{row}" if self.unit == "line" else f"record {row}"
        return ":".join(part for part in (path, number, column) if part)


def read_rows(data: DataSpec, on_progress: OnBytes = lambda done, total: None) -> Rows:
    """All rows of the source that meet `data.where`, with the SHA-256 of the bytes that were read.

    `on_progress` hears how many bytes of how many of the file at hand are read.
    A row that cannot be parsed may or may not meet `where`, so it stays. The digest of a folder is that of its
    `sha256  name` lines in order of name; that of a hub id, of its rows as JSON.

    Raises:
        SpecRefused: a hub id without revision, or a source that is neither path nor id.
        DataRefused: a source that is missing, not readable or not a data file, or no row that meets `data.where`.
        DependencyDown: the hub does not answer.
    """
    if data.query is not None:
        rows = _read_query(data.source, data.query)
    elif is_local(data.source):
        if data.revision is not None:
            raise SpecRefused.one(
                "E-SPEC-031", "data.revision", "a path has no revision", "remove it; the bytes are hashed"
            )
        try:
            rows = _read_local(Path(data.source), on_progress)
        except OSError as error:
            wrong = (error.strerror or str(error)).lower()
            raise DataRefused.one(
                "E-DATA-001", error.filename or data.source, wrong, "name data that can be read"
            ) from None
    else:
        rows = _read_hub(data)
    if missing := [name for name in data.where if name not in rows.columns]:
        raise missing_columns(rows.source, missing, rows.columns)
    if not data.where:
        return rows
    wanted = data.where.items()
    kept = [at for at, record in enumerate(rows.records) if all(record.get(name) == text for name, text in wanted)]
    if rows.records and not kept:
        raise _nothing_meets(data.where, rows)
    return Rows(
        columns=rows.columns,
        records=[rows.records[at] for at in kept],
        digest=rows.digest,
        source=rows.source,
        places=[rows.places[at] for at in kept],
        malformed=rows.malformed,
        unit=rows.unit,
        filtered=len(rows.records) - len(kept),
    )


def digest_of(data: DataSpec) -> str | None:
    """What says that a source holds what it held: its bytes, or the commit of a hub id; None where only rows can tell.

    Of local data it is the digest that `read_rows` gives.
    """
    if data.query is not None:
        return None
    if not is_local(data.source):
        return f"{data.source}@{data.revision}" if data.revision else None
    source = Path(data.source)
    try:
        files = data_files(source) if source.is_dir() else [source]
        sums = []
        for path in files:
            if not stat.S_ISREG(path.stat().st_mode):
                return None
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            sums.append(f"{digest}  {path.relative_to(source).as_posix() if source.is_dir() else path.name}\n")
    except (OSError, DataRefused):
        return None  # the door says what is wrong
    return hashlib.sha256("".join(sums).encode()).hexdigest() if source.is_dir() else sums[0][:64]


def is_local(source: str) -> bool:
    """Whether a source is a path: absolute, or relative with ./ or ../ in front; anything else is a hub id.

    >>> is_local("/data/a.csv"), is_local("./a.csv"), is_local("imdb"), is_local("PolyAI/banking77")
    (True, True, False, False)
    """
    return Path(source).is_absolute() or source.startswith((f".{os.sep}", f"..{os.sep}")) or source in (".", "..")


def missing_columns(source: str, missing: list[str], found: tuple[str, ...]) -> DataRefused:
    """The refusal that names each missing column and what the source has instead."""
    has = ", ".join(shown(name) for name in found[:20]) or "no columns"
    names = ", ".join(shown(name) for name in missing)
    noun = "column" if len(missing) == 1 else "columns"
    return DataRefused(
        Problem(
            "E-DATA-004", source, f"{noun} {names} missing; found {has}", "name a column that the data has, or add it"
        )
    )


def _nothing_meets(where: Mapping[str, str], rows: Rows) -> DataRefused:
    wanted = " and ".join(f"{name} = {shown(text)}" for name, text in where.items())
    name = next(iter(where))
    values = list(dict.fromkeys(shown(record.get(name)) for record in rows.records))
    found = ", ".join(values[:10]) + (", ..." if len(values) > 10 else "")
    wrong = f"none of its {len(rows.records):,} rows has {wanted}; {name} is {found}"
    return DataRefused(Problem("E-DATA-005", rows.source, wrong, "change data.where"))


def _read_local(source: Path, on_progress: OnBytes) -> Rows:
    folder = source.is_dir()
    files = data_files(source) if folder else [source]
    columns: dict[str, None] = {}
    records: list[dict[str, Any]] = []
    places: list[tuple[str, int]] = []
    malformed: list[Quarantined] = []
    sums = []
    for path in files:
        file = path.relative_to(source).as_posix() if folder else path.name
        parsed, digest = _read_file(path, file, on_progress)
        columns |= dict.fromkeys(parsed.columns)
        records += parsed.records
        places += [(file, row) for row in parsed.rows]
        malformed += parsed.malformed
        sums.append(f"{digest}  {file}\n")
    digest = hashlib.sha256("".join(sums).encode()).hexdigest() if folder else sums[0][:64]
    unit = FORMATS[files[0].suffix.lower()][2]
    return Rows(tuple(columns), records, digest, str(source), places, tuple(malformed), unit, 0)


def _read_hub(data: DataSpec) -> Rows:
    from tasks.data.hub import read_hub

    digest, splits = read_hub(data.source, data.revision)
    columns = dict.fromkeys(name for parsed in splits.values() for name in parsed.columns)
    records = [record for parsed in splits.values() for record in parsed.records]
    places = [(split, row) for split, parsed in splits.items() for row in parsed.rows]
    return Rows(tuple(columns), records, digest, f"{data.source}@{data.revision}", places, (), "record", 0)


def _read_query(source: str, query: str) -> Rows:
    from tasks.data.database import read_query, shown_url

    digest, parsed = read_query(source, query)
    places = [("", row) for row in parsed.rows]
    return Rows(parsed.columns, parsed.records, digest, shown_url(source), places, (), "record", 0)


def data_files(folder: Path) -> list[Path]:
    """Data files below a folder in order of their relative names; hidden ones and other suffixes are no data."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in FORMATS and not path.is_dir()]
    files = [path for path in found if not any(part[0] in "._" for part in path.relative_to(folder).parts)]
    files.sort(key=lambda path: path.relative_to(folder).as_posix())
    kinds = sorted({FORMATS[path.suffix.lower()][0] for path in files})
    if not files:
        raise DataRefused.one("E-DATA-001", folder, "the folder holds no data file", _REMEDY)
    if len(kinds) > 1:
        raise DataRefused.one(
            "E-DATA-001", folder, f"the folder mixes {' and '.join(kinds)}", "name one file, or keep one format"
        )
    home = folder.resolve()
    for path in files:
        if not path.resolve().is_relative_to(home):
            raise DataRefused.one(
                "E-DATA-001", path, "a link that leads out of the folder", "copy the file into the folder"
            )
    return files


def head_of(path: Path, size: int = HEAD_BYTES) -> bytes:
    """The first bytes of a data file.

    Raises:
        DataRefused: it cannot be read, is no regular file, or its ending names no format.
    """
    try:
        with _opened(path) as raw:
            return io.BufferedReader(raw).read(size)
    except OSError as error:
        wrong = (error.strerror or str(error)).lower()
        raise DataRefused.one("E-DATA-001", path, wrong, "name data that can be read") from None


def _opened(path: Path) -> io.FileIO:
    if path.suffix.lower() not in FORMATS:
        path.stat()  # a name that does not exist is reported as that
        raise DataRefused.one("E-DATA-001", path, f"the ending of '{path.name}' names no data format", _REMEDY)
    # without O_NONBLOCK, opening a FIFO would wait for a writer that may never come
    raw = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        raw.close()
        raise DataRefused.one("E-DATA-001", path, "not a regular file", "copy the data into a file")
    return raw


def _read_file(path: Path, file: str, on_progress: OnBytes) -> tuple[Parsed, str]:
    with _opened(path) as raw:
        before = os.fstat(raw.fileno())
        hashed = _Hashed(raw, lambda size: on_progress(size, before.st_size))
        parsed = FORMATS[path.suffix.lower()][1](io.BufferedReader(hashed, 1 << 20), str(path), file)
        after = os.fstat(raw.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or hashed.size != after.st_size:
        raise DataRefused.one(
            "E-DATA-021", path, "the file changed while it was read", "let the writer finish, then try again"
        )
    return parsed, hashed.digest.hexdigest()


class _Hashed(io.RawIOBase):
    """A stream that hashes what passes through it."""

    def __init__(self, raw: io.RawIOBase, on_size: Callable[[int], None]) -> None:
        self.raw, self.size, self.digest, self.on_size = raw, 0, hashlib.sha256(), on_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.raw.readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        self.size += count
        self.on_size(self.size)
        return count
