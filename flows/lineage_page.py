"""A lineage as one HTML file: what came first on the left, each node to be clicked, nothing fetched from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from flows.places import writing_to
from registry.durable import replace_file
from registry.lineage import Lineage, as_json

TEMPLATES = Path(__file__).parent / "templates"


def write_page(lineage: Lineage, path: Path) -> Path:
    """The page, whole or not at all.

    Raises:
        SpecRefused: nothing can be written there.
    """
    shelf = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(["html", "j2"]))
    page = shelf.get_template("lineage.html.j2").render(root=lineage.root, data=in_script(drawn(lineage)))
    with writing_to(path, "--page"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, page.encode())
    return path


def drawn(lineage: Lineage) -> dict[str, Any]:
    """Nodes with the column that each stands in: one after the last of what it was made from."""
    columns = columns_of(lineage)
    plain = as_json(lineage)
    return {**plain, "nodes": [{**node, "column": columns[node["ref"]]} for node in plain["nodes"]]}


def columns_of(lineage: Lineage) -> Mapping[str, int]:
    """Longest way from something that was made from nothing, in links.

    Raises:
        ValueError: the links run in a circle, which the ledger cannot hold.
    """
    parents: dict[str, list[str]] = {ref: [] for ref in lineage.nodes}
    children: dict[str, list[str]] = {ref: [] for ref in lineage.nodes}
    for child, _, parent in lineage.links:
        parents[child].append(parent)
        children[parent].append(child)
    waiting = {ref: len(found) for ref, found in parents.items()}
    columns = dict.fromkeys(lineage.nodes, 0)
    ready = [ref for ref, count in waiting.items() if not count]
    for ref in ready:
        for child in children[ref]:
            columns[child] = max(columns[child], columns[ref] + 1)
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    if len(ready) < len(columns):
        raise ValueError("the links run in a circle")
    return columns


def in_script(value: Any) -> str:
    """JSON that cannot end the script element it stands in.

    >>> in_script("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
