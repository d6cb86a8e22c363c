"""Great Expectations suites as files: written beside a spec, read into it, and shown as Data Docs on request."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import SpecRefused

_REMEDY = "name a suite as Great Expectations writes it: `factory validate SPEC --suite FILE` makes one"


def rules_in(text: str, place: str) -> list[dict[str, Any]]:
    """The rules of a suite in JSON, as `data.expectations` states them; severity is critical where none is given.

    >>> rules_in('{"expectations": [{"type": "expect_column_to_exist", "kwargs": {"column": "a"}}]}', "s.json")
    [{'expect': 'expect_column_to_exist', 'severity': 'critical', 'arguments': {'column': 'a'}}]

    Raises:
        SpecRefused: it is no suite, or one without a rule.
    """
    try:
        rules = json.loads(text)["expectations"]
        found = [
            {
                "expect": rule["type"],
                "severity": "critical" if rule.get("severity", "critical") == "critical" else "warning",
                "arguments": dict(rule.get("kwargs") or {}),
            }
            for rule in rules
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        wrong = f"not a suite: {type(error).__name__} {str(error)[:100]}"
        raise SpecRefused.one("E-SPEC-039", place, wrong, _REMEDY) from None
    if not found:
        raise SpecRefused.one("E-SPEC-039", place, "the suite has no rule", _REMEDY)
    return found


def write_suite(suite: Mapping[str, Any], path: Path) -> Path:
    """The suite as JSON, whole or not at all."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staging.write_text(
            json.dumps(suite, ensure_ascii=False, indent=1, sort_keys=True, default=repr) + "\n", "utf-8"
        )
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    return path


def write_data_docs(suite: Mapping[str, Any], columns: Mapping[str, list[Any]], folder: Path) -> Path:
    """Great Expectations' own pages about a suite and its outcome on a table; returns the page to open.

    They are many megabytes and fetch their style from the network; the report of the factory needs neither.
    """
    from tasks.data.validation import frame_of, great_expectations

    gx, _ = great_expectations()
    folder.mkdir(parents=True, exist_ok=True)
    context = gx.get_context(mode="ephemeral")
    backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.resolve())}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    site = {"class_name": "SiteBuilder", "store_backend": backend, "site_index_builder": index}
    for name in list(context.get_site_names() or ()):
        context.delete_data_docs_site(name)
    context.add_data_docs_site(site_name="factory", site_config=site)
    kept = context.suites.add(gx.ExpectationSuite(**suite))
    batch = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
    whole = batch.add_batch_definition_whole_dataframe("all")
    asked = context.validation_definitions.add(gx.ValidationDefinition(name=kept.name, data=whole, suite=kept))
    asked.run(batch_parameters={"dataframe": frame_of(columns)}, result_format="SUMMARY")
    context.build_data_docs(site_names=["factory"])
    return folder / "index.html"
