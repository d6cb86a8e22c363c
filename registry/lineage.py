"""What a model was made from, down to data, base and code; and what was made from it. As a tree, Mermaid or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, or_, select
from sqlalchemy.orm import Session

from registry.names import CONTENT, find_content, find_version
from registry.records import base_ref, code_ref, dataset_ref
from registry.tables import BaseRow, CodeRow, DatasetRow, EdgeRow, VersionRow
from registry.versions import edges_of

Direction = Literal["up", "down"]
SHORTEN = {"base": base_ref, "dataset": dataset_ref, "code": code_ref}


@dataclass(frozen=True)
class Node:
    """One thing; `ref` holds the full digest of content, `label` is what a person reads."""

    ref: str
    kind: str  # adapter, merged, base, dataset, code
    label: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Link:
    """`child` was made from `parent`, as `role`."""

    child: str
    role: str
    parent: str


@dataclass(frozen=True)
class Lineage:
    """Everything that is reached from `root`: up to what it was made from, or down to what was made from it."""

    root: str
    direction: Direction
    nodes: Mapping[str, Node]
    links: tuple[Link, ...]

    def steps(self, ref: str) -> tuple[tuple[str, str], ...]:
        """(role, next node) one step further in this direction."""
        if self.direction == "up":
            return tuple((link.role, link.parent) for link in self.links if link.child == ref)
        return tuple((link.role, link.child) for link in self.links if link.parent == ref)

    def versions(self) -> tuple[str, ...]:
        """References of all versions in it, the root included if it is one."""
        return tuple(ref for ref, node in self.nodes.items() if node.kind not in CONTENT)


def walk(session: Session, ref: str, direction: Direction = "up") -> Lineage:
    """Follow every edge from a version (up or down), or from a base, data set or code (down).

    Raises:
        Unknown: for what is not in the ledger.
    """
    kind, _, digest = ref.partition(":")
    if kind in CONTENT:
        row = find_content(session, kind, digest)
        content = {f"{kind}:{row.digest}": _content_node(row)}
        if direction == "up":
            return Lineage(next(iter(content)), direction, content, ())
        ids = _made_from(session, getattr(EdgeRow, kind) == row.digest)
        return _lineage(session, next(iter(content)), direction, ids, content)
    version = find_version(session, ref)
    ids = _ancestors(session, version.id) if direction == "up" else _made_from(session, EdgeRow.parent_id == version.id)
    return _lineage(session, f"{version.name}:{version.number}", direction, sorted({version.id, *ids}), {})


def neighbourhood(session: Session, ref: str) -> Lineage:
    """One step up and one step down from a version: what fits on its page."""
    version = find_version(session, ref)
    root = f"{version.name}:{version.number}"
    above = select(EdgeRow.parent_id).where(EdgeRow.child_id == version.id, EdgeRow.parent_id.is_not(None))
    below = select(EdgeRow.child_id).where(EdgeRow.parent_id == version.id)
    ids = {version.id, *session.scalars(above), *session.scalars(below)}
    wide = _lineage(session, root, "up", sorted(filter(None, ids)), {})
    links = tuple(link for link in wide.links if root in (link.child, link.parent))
    near = {root, *(link.parent for link in links), *(link.child for link in links)}
    return Lineage(root, "up", {name: node for name, node in wide.nodes.items() if name in near}, links)


def tree(lineage: Lineage) -> str:
    """The lineage as indented text; what was drawn once is not drawn again below another parent."""
    drawn: set[str] = set()
    return "\n".join([lineage.nodes[lineage.root].label, *_branches(lineage, lineage.root, "", drawn)])


def mermaid(lineage: Lineage) -> str:
    """A Mermaid flowchart from what came first to what was made from it."""
    number = {ref: f"n{place}" for place, ref in enumerate(lineage.nodes)}
    shapes = {"base": ("[(", ")]"), "dataset": ("[/", "/]"), "code": ("{{", "}}"), "merged": ("([", "])")}
    lines = ["flowchart LR"]
    for ref, node in lineage.nodes.items():
        left, right = shapes.get(node.kind, ("[", "]"))
        lines.append(f'  {number[ref]}{left}"{_quoted(node.label)}"{right}')
    lines += [f"  {number[link.parent]} -->|{link.role}| {number[link.child]}" for link in lineage.links]
    if lineage.root in number:
        lines.append(f"  style {number[lineage.root]} stroke-width:3px")
    return "\n".join(lines)


def as_json(lineage: Lineage) -> dict[str, Any]:
    """Plain values, for machines."""
    nodes = [{"ref": node.ref, "kind": node.kind, "label": node.label, **node.facts} for node in lineage.nodes.values()]
    links = [{"child": link.child, "role": link.role, "parent": link.parent} for link in lineage.links]
    return {"root": lineage.root, "direction": lineage.direction, "nodes": nodes, "links": links}


def _ancestors(session: Session, version_id: int) -> list[int]:
    first = select(VersionRow.id.label("id")).where(VersionRow.id == version_id)
    found = first.cte("found", recursive=True)
    further = (
        select(EdgeRow.parent_id).join(found, EdgeRow.child_id == found.c.id).where(EdgeRow.parent_id.is_not(None))
    )
    return list(session.scalars(select(found.union(further).c.id)))


def _made_from(session: Session, first_step: ColumnElement[bool]) -> list[int]:
    first: Select[Any] = select(EdgeRow.child_id.label("id")).where(first_step)
    found = first.cte("found", recursive=True)
    return sorted(
        session.scalars(select(found.union(select(EdgeRow.child_id).join(found, EdgeRow.parent_id == found.c.id)).c.id))
    )


def _lineage(session: Session, root: str, direction: Direction, ids: list[int], content: dict[str, Node]) -> Lineage:
    """Nodes and links among the versions `ids`; on the way down, only links between root and descendants."""
    named: dict[int, str] = {}
    nodes = dict(content)
    columns = select(VersionRow.id, VersionRow.name, VersionRow.number, VersionRow.kind, VersionRow.artifact)
    for row_id, name, number, kind, artifact in session.execute(
        columns.where(VersionRow.id.in_(ids)).order_by(VersionRow.id)
    ):
        ref = named[row_id] = f"{name}:{number}"
        nodes[ref] = Node(ref, kind, f"{ref} ({kind})", {"artifact": artifact})
    links = tuple(
        Link(named[child_id], role, parent)
        for child_id, role, parent in edges_of(session, list(named))
        if direction == "up" or parent in nodes
    )
    nodes.update(_content_nodes(session, {link.parent for link in links} - set(nodes)))
    return Lineage(root, direction, nodes, links)


def _content_nodes(session: Session, refs: set[str]) -> dict[str, Node]:
    nodes = {}
    for kind, table in CONTENT.items():
        digests = [ref.partition(":")[2] for ref in sorted(refs) if ref.startswith(f"{kind}:")]
        rows: Any = session.scalars(select(table).where(or_(table.digest.in_(digests))))
        nodes.update({f"{kind}:{row.digest}": _content_node(row) for row in rows})
    return nodes


def _content_node(row: BaseRow | DatasetRow | CodeRow) -> Node:
    if isinstance(row, BaseRow):
        label = f"{base_ref(row.digest)} {row.name} ({row.architecture}, {row.parameters:,} parameters)"
        return Node(f"base:{row.digest}", "base", label, {"name": row.name, "revision": row.revision})
    if isinstance(row, DatasetRow):
        label = f"{dataset_ref(row.digest)} {row.task} {row.purpose} ({row.accepted:,} rows)"
        facts = {"task": row.task, "purpose": row.purpose, "source": row.source, "source_digest": row.source_digest}
        return Node(f"dataset:{row.digest}", "dataset", label, {**facts, "counts": row.counts})
    return Node(f"code:{row.digest}", "code", code_ref(row.digest), {"versions": row.versions})


def _branches(lineage: Lineage, ref: str, indent: str, drawn: set[str]) -> Iterator[str]:
    drawn.add(ref)
    steps = lineage.steps(ref)
    for place, (role, following) in enumerate(steps):
        last = place == len(steps) - 1
        again = " (drawn above)" if following in drawn and lineage.steps(following) else ""
        yield f"{indent}{'└─ ' if last else '├─ '}{role}: {lineage.nodes[following].label}{again}"
        if following not in drawn:
            yield from _branches(lineage, following, indent + ("   " if last else "│  "), drawn)


def _quoted(label: str) -> str:
    """Text inside Mermaid's quotes; its own syntax and HTML are spelled out.

    >>> _quoted('a "b" <c>')
    'a #quot;b#quot; #lt;c#gt;'
    """
    for plain, spelled in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("\n", " ")):
        label = label.replace(plain, spelled)
    return label
