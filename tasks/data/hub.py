"""A data set of the Hugging Face hub into rows, at a pinned commit. Code of a data set is not run (`datasets` >= 4)."""

from __future__ import annotations

import hashlib
import json
import re

from tasks.data.formats import Parsed, table_rows
from tasks.errors import DataRefused, DependencyDown, SpecRefused

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_DATA_SUFFIX = re.compile(r"\.(jsonl|ndjson|json|csv|parquet)$")


def read_hub(name: str, revision: str | None) -> tuple[str, dict[str, Parsed]]:
    """SHA-256 of the rows as JSON, and the rows by split; a column `split` names it unless the data set has one.

    Class numbers become their names, because a label that is a number means nothing outside its data set.

    Raises:
        SpecRefused: no such form of an id, or no revision: what moves cannot be reproduced.
        DataRefused: the hub has no such data set or revision, or it cannot be read as rows.
        DependencyDown: the hub cannot be reached and the revision is not in the cache.
    """
    if not _HUB_ID.fullmatch(name) or _DATA_SUFFIX.search(name):
        remedy = f"write ./{name} for a path, or owner/name for a data set of the hub"
        raise SpecRefused.one("E-SPEC-033", "data.source", f"'{name}' is neither a path nor a hub id", remedy)
    if revision is None:
        wrong = f"'{name}' is a hub id without a revision, which may change under your feet"
        raise SpecRefused.one(
            "E-SPEC-032", "data.revision", wrong, f"pin the 40-digit commit, or write ./{name} for a path"
        )
    try:
        import datasets
    except ImportError:
        wrong = "reading from the hub needs the package `datasets`"
        raise SpecRefused.one("E-SPEC-034", "data.source", wrong, "pip install 'adapter-factory[train]'") from None

    place = f"{name}@{revision}"
    try:
        loaded = datasets.load_dataset(name, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataRefused.one("E-DATA-001", place, _line(error), "check the id, the commit and your access") from None
    except (ConnectionError, TimeoutError) as error:
        raise DependencyDown.one(
            "E-DATA-020", place, _line(error), "try again when the hub answers; it is safe"
        ) from None
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise DataRefused.one(
            "E-DATA-003", place, f"not readable as rows: {_line(error)}", "download it as Parquet"
        ) from None

    splits = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    digest = hashlib.sha256()
    read = {}
    for split, content in splits.items():
        table = content.with_format("arrow")[:]
        parsed = read[split] = table_rows(table.to_batches(), tuple(table.column_names), place)
        classes = {column: kind for column, kind in content.features.items() if isinstance(kind, datasets.ClassLabel)}
        named = "split" in parsed.columns
        for record in parsed.records:
            for column, kind in classes.items():
                number = record[column]
                record[column] = kind.int2str(number) if number is not None and number >= 0 else None
            if not named:
                record["split"] = split
            digest.update(json.dumps(record, default=repr).encode())
        parsed.columns = parsed.columns if named else (*parsed.columns, "split")
    return digest.hexdigest(), read


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
