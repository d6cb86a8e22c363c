"""What a model was made from, down to data, base and code; and what was made from it. As a tree, Mermaid or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from registry.names import CONTENT, find_content, find_version
from registry.records import base_ref, code_ref, dataset_ref
from registry.tables import BaseRow, CodeRow, DatasetRow, EdgeRow, VersionRow, WithdrawalRow

Direction = Literal["up", "down"]
SHORTEN = {"base": base_ref, "dataset": dataset_ref, "code": code_ref}


class Node(NamedTuple):
    """One thing; `ref` holds the full digest of content, `label` is what a person reads."""

    ref: str
    kind: str  # adapter, merged, base, dataset, code
    label: str
    facts: Mapping[str, Any] = MappingProxyType({})


class Link(NamedTuple):
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

    @cached_property
    def steps(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """From each node that leads further in this direction: (role, next node), in the order of the drafts."""
        found: dict[str, list[tuple[str, str]]] = {}
        for child, role, parent in self.links:
            here, there = (child, parent) if self.direction == "up" else (parent, child)
            found.setdefault(here, []).append((role, there))
        return found

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
        first: Any = select(EdgeRow.child_id.label("id")).where(getattr(EdgeRow, kind) == row.digest)
        return _lineage(session, next(iter(content)), direction, _descendants(first), content)
    version = find_version(session, ref)
    first = select(VersionRow.id.label("id")).where(VersionRow.id == version.id)
    ids = _ancestors(first) if direction == "up" else _descendants(first)
    return _lineage(session, f"{version.name}:{version.number}", direction, ids, {})


def neighbourhood(session: Session, ref: str) -> Lineage:
    """One step up and one step down from a version: what fits on its page."""
    version = find_version(session, ref)
    root = f"{version.name}:{version.number}"
    above = select(EdgeRow.parent_id).where(EdgeRow.child_id == version.id, EdgeRow.parent_id.is_not(None))
    below = select(EdgeRow.child_id).where(EdgeRow.parent_id == version.id)
    near_ids = select(VersionRow.id).where(
        or_(VersionRow.id == version.id, VersionRow.id.in_(above), VersionRow.id.in_(below))
    )
    wide = _lineage(session, root, "up", near_ids, {})
    links = tuple(link for link in wide.links if root in (link.child, link.parent))
    near = {root, *(link.parent for link in links), *(link.child for link in links)}
    return Lineage(root, "up", {name: node for name, node in wide.nodes.items() if name in near}, links)


def tree(lineage: Lineage) -> str:
    """The lineage as indented text; what was drawn once is not drawn again below another parent."""
    return "\n".join([lineage.nodes[lineage.root].label, *_branches(lineage, lineage.root)])


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


def _ancestors(first: Select[Any]) -> Select[Any]:
    found = first.cte("found", recursive=True)
    step = select(EdgeRow.parent_id).join(found, EdgeRow.child_id == found.c.id).where(EdgeRow.parent_id.is_not(None))
    return select(found.union(step).c.id)


def _descendants(first: Select[Any]) -> Select[Any]:
    found = first.cte("found", recursive=True)
    return select(found.union(select(EdgeRow.child_id).join(found, EdgeRow.parent_id == found.c.id)).c.id)


def _lineage(session: Session, root: str, direction: Direction, ids: Select[Any], content: dict[str, Node]) -> Lineage:
    """Nodes and links among the versions `ids`; on the way down, only links between root and descendants."""
    named: dict[int, str] = {}
    nodes = dict(content)
    gone = set(session.scalars(select(WithdrawalRow.version_id)))
    row, edge = VersionRow.__table__.c, EdgeRow.__table__.c  # plain columns: thousands of rows need no object each
    columns = select(row.id, row.name, row.number, row.kind, row.artifact)
    for row_id, name, number, kind, artifact in session.execute(columns.where(row.id.in_(ids)).order_by(row.id)):
        withdrawn = row_id in gone
        ref = named[row_id] = f"{name}:{number}"
        label = f"{ref} ({kind}, withdrawn)" if withdrawn else f"{ref} ({kind})"
        nodes[ref] = Node(ref, kind, label, {"artifact": artifact, "withdrawn": withdrawn})
    links = []
    edges = select(edge.child_id, edge.role, edge.parent_id, *(edge[kind] for kind in CONTENT))
    edges = edges.where(edge.child_id.in_(ids))
    if direction == "down":
        kind, _, digest = root.partition(":")
        inside = edge.parent_id.is_not(None)
        edges = edges.where(or_(inside, edge[kind] == digest) if kind in CONTENT else inside)
    for child_id, role, parent_id, *digests in session.execute(edges.order_by(edge.child_id, edge.place)):
        if parent_id is None:
            parent = next(f"{kind}:{digest}" for kind, digest in zip(CONTENT, digests, strict=True) if digest)
        elif parent_id in named:
            parent = named[parent_id]
        else:
            continue  # on the way down: another parent, which is not among the descendants
        links.append(Link(named[child_id], role, parent))
    nodes.update(_content_nodes(session, {link.parent for link in links} - nodes.keys()))
    return Lineage(root, direction, nodes, tuple(links))


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
        return Node(f"dataset:{row.digest}", "dataset", label, facts)
    return Node(f"code:{row.digest}", "code", code_ref(row.digest), {"versions": row.versions})


def _branches(lineage: Lineage, root: str) -> Iterator[str]:
    """Depth first, with a list for a stack: a chain of retrainings can be longer than Python may recurse."""
    drawn = {root}
    todo = [(step, "", place) for place, step in enumerate(reversed(lineage.steps.get(root, ())))]
    while todo:
        (role, ref), indent, from_last = todo.pop()
        further = lineage.steps.get(ref, ())
        again = " (drawn above)" if ref in drawn and further else ""
        yield f"{indent}{'├─ ' if from_last else '└─ '}{role}: {lineage.nodes[ref].label}{again}"
        if ref not in drawn:
            drawn.add(ref)
            inner = indent + ("│  " if from_last else "   ")
            todo += [(step, inner, place) for place, step in enumerate(reversed(further))]


def _quoted(label: str) -> str:
    """Text inside Mermaid's quotes; its own syntax and HTML are spelled out.

    >>> _quoted('a "b" <c>')
    'a #quot;b#quot; #lt;c#gt;'
    """
    for plain, spelled in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("\n", " ")):
        label = label.replace(plain, spelled)
    return label
