"""What a version says about itself in MLflow: tags, parameters, and a page in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.lineage import Lineage, Link, Node, mermaid
from registry.names import CONTENT
from registry.records import SHORT, EvaluationRecord, PromotionRecord, VersionRecord

VERSION_KEY = "factory.version_key"  # tag that finds a version again
LIMIT = 5000  # characters that MLflow's database keeps of a description
TEXT_LIMIT = 6000  # characters of a parameter or tag
MOST_PARAMS = 200


@dataclass(frozen=True)
class VersionFacts:
    """Everything that a version's page says."""

    version: VersionRecord
    scores: tuple[EvaluationRecord, ...]
    base_scores: tuple[EvaluationRecord, ...]
    previous_scores: tuple[EvaluationRecord, ...]  # of the champion that it was made to replace
    above: Lineage
    children: tuple[tuple[str, str], ...]  # (role, reference) of what was made from it


def version_page(facts: VersionFacts) -> str:
    """The description of a model version; the drawing goes first when all of it is too long."""
    version = facts.version
    opening = [
        f"**{version.ref}** · {version.kind} on {facts.above.nodes['base:' + version.base].label}",
        "",
        f"artifact `sha256:{version.artifact[:SHORT]}` · code `{version.code[:SHORT]}`"
        f" · key `{version.version_key[:SHORT]}`",
    ]
    text = [*opening, *_score_table(facts), *_relatives(facts)]
    drawing = ["", "```mermaid", mermaid(_neighbourhood(facts)), "```"]
    whole = "\n".join([*text, *drawing])
    return whole if len(whole) <= LIMIT else "\n".join(text)[:LIMIT]


def name_page(name: str, links: Sequence[PromotionRecord]) -> str:
    """The description of a registered model: its champions, newest first."""
    lines = [f"Champions of **{name}**, newest first", "", "| | version | before | by | why |", "|---|---|---|---|---|"]
    for link in reversed(links[-20:]):
        before = "" if link.previous is None else f"v{link.previous}"
        why = link.reason or link.move
        lines.append(f"| {link.seq} | {_version_link(link.ref)} | {before} | {_cell(link.actor)} | {_cell(why)} |")
    return "\n".join(lines if links else [f"**{name}** has no champion yet"])[:LIMIT]


def version_parents(version: VersionRecord) -> tuple[str, ...]:
    """References of the versions that it was made from, each once."""
    refs = [ref for _, ref in version.parents if ref.partition(":")[0] not in CONTENT]
    return tuple(dict.fromkeys(refs))


def version_tags(version: VersionRecord) -> dict[str, str]:
    """What a version says about itself on its run and on its registered version."""
    datasets = [ref.removeprefix("dataset:") for _, ref in version.parents if ref.startswith("dataset:")]
    parents = [f"models:/{ref.replace(':', '/')}" for ref in version_parents(version)]
    tags = {
        VERSION_KEY: version.version_key,
        "factory.version": version.ref,
        "factory.kind": version.kind,
        "factory.artifact": version.artifact,
        "factory.base": version.base,
        "factory.code": version.code,
        "factory.datasets": ",".join(datasets),
        "lineage.parents": ",".join(parents),
        "prefect.flow_run_id": version.flow_run or "",
    }
    return {key: value[:TEXT_LIMIT] for key, value in tags.items() if value}


def flat(spec: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names, the way MLflow shows parameters.

    >>> flat({"method": {"rank": 16}, "seed": 0})
    [('method.rank', '16'), ('seed', '0')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in spec.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            rows.append((f"{prefix}{key}"[:250], text[:TEXT_LIMIT]))
    return rows[:MOST_PARAMS]


def _score_table(facts: VersionFacts) -> list[str]:
    if not facts.scores:
        return []
    lines = [
        "",
        "| data | side | metric | rows | base | previous | this | interval |",
        "|---|---|---|--:|--:|--:|--:|---|",
    ]
    for score in facts.scores:
        data = f"`{score.dataset[:SHORT]}`"
        base, previous = _answer(facts.base_scores, score), _answer(facts.previous_scores, score)
        lines.append(
            f"| {data} | {score.side} | {score.metric} | {score.n} | {base} | {previous} | **{score.score:.3f}** "
            f"| {score.low:.3f}–{score.high:.3f} |"
        )
    return lines


def _answer(scores: Iterable[EvaluationRecord], asked: EvaluationRecord) -> str:
    """The score on the very same rows, or nothing."""
    question = (asked.dataset, asked.side, asked.metric, asked.keys)
    for score in scores:
        if (score.dataset, score.side, score.metric, score.keys) == question:
            return f"{score.score:.3f}"
    return ""


def _relatives(facts: VersionFacts) -> list[str]:
    lines = []
    for role, ref in facts.above.steps(facts.version.ref):
        node = facts.above.nodes[ref]
        lines.append(f"- {role}: {_version_link(ref) if _is_version(node) else _cell(node.label)}")
    lines += [f"- {role} of {_version_link(ref)}" for role, ref in facts.children]
    return ["", *lines]


def _neighbourhood(facts: VersionFacts) -> Lineage:
    """One step up and one step down; a whole history would not fit."""
    ref = facts.version.ref
    near = [parent for _, parent in facts.above.steps(ref)]
    nodes = {node: facts.above.nodes[node] for node in (*near, ref)}
    nodes |= {child: Node(child, "adapter", child) for _, child in facts.children}
    links = [link for link in facts.above.links if link.child == ref]
    links += [Link(child, role, ref) for role, child in facts.children]
    return Lineage(ref, "up", nodes, tuple(links))


def _is_version(node: Node) -> bool:
    return node.kind in ("adapter", "merged")


def _version_link(ref: str) -> str:
    name, _, number = ref.partition(":")
    return f"[{ref}](#/models/{name}/versions/{number})"


def _cell(text: str) -> str:
    """Text that stays inside its table cell."""
    return text.replace("|", "\\|").replace("\n", " ")
