"""What a version says about itself in MLflow: tags, parameters, and a page in Markdown."""

from __future__ import annotations

import html
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.lineage import Lineage, Node, mermaid, tree
from registry.names import CONTENT
from registry.records import SHORT, EvaluationRecord, PromotionRecord, VersionRecord, WithdrawalRecord

VERSION_KEY = "factory.version_key"  # tag that finds a version again
LIMIT = 5000  # characters that MLflow's database keeps of a description
TEXT_LIMIT = 6000  # characters of a parameter or tag
NAME_LIMIT = 250  # characters of a name
MOST_PARAMS = 200
SPACE = "\u00a0\u00a0"


@dataclass(frozen=True)
class VersionFacts:
    """Everything that a version's page says."""

    version: VersionRecord
    scores: tuple[EvaluationRecord, ...]
    base_scores: tuple[EvaluationRecord, ...]
    previous_scores: tuple[EvaluationRecord, ...]  # of the champion that it was made to replace
    above: Lineage  # all that it was made from
    near: Lineage  # one step up, one step down
    withdrawal: WithdrawalRecord | None = None


def version_page(facts: VersionFacts) -> str:
    """The description of a model version; the drawing is the first to go when all of it is too long.

    Drawn as text: MLflow's pages show Mermaid as its source.
    """
    version = facts.version
    opening = [
        f"**{version.ref}** · {version.kind} on {_cell(facts.near.nodes['base:' + version.base].label)}",
        "",
        f"artifact `sha256:{version.artifact[:SHORT]}` · code `{version.code[:SHORT]}`"
        f" · key `{version.version_key[:SHORT]}`",
    ]
    if facts.withdrawal is not None:
        opening[:0] = [f"**Withdrawn**: {_cell(facts.withdrawal.reason)} ({_version_link(facts.withdrawal.cause)})", ""]
    text = [*opening, *_score_table(facts), *_relatives(facts)]
    drawing = ["", "```", tree(facts.above), "```"]
    whole = "\n".join([*text, *drawing])
    return whole if len(whole) <= LIMIT else "\n".join(text)[:LIMIT]


def lineage_file(above: Lineage) -> str:
    """The same lineage for readers that draw Mermaid."""
    return f"```mermaid\n{mermaid(above)}\n```\n"


def name_page(name: str, links: Sequence[PromotionRecord]) -> str:
    """The description of a registered model: its champions, newest first."""
    if not links:
        return f"**{name}** has no champion yet"
    rows = [("", "version", "before", "by", "why"), ("---",) * 5]
    for link in reversed(links[-20:]):
        before = "" if link.previous is None else f"v{link.previous}"
        rows.append((str(link.seq), _version_link(link.ref), before, link.actor, link.reason or link.move))
    return "\n".join([f"Champions of **{name}**, newest first", "", *map(_table_row, rows)])[:LIMIT]


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


def plain_name(name: str) -> str:
    """The nearest name that MLflow takes for a parameter or metric.

    >>> plain_name("weights.triage@champion"), plain_name("hits?"), plain_name("a/../b")
    ('weights.triage_champion', 'hits_', 'a_.._b')
    """
    plain = re.sub(r"[^\w.\- :/]", "_", name)[:NAME_LIMIT]
    return plain if posixpath.normpath(plain) == plain and plain[0] not in "/." else plain.replace("/", "_")


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
            rows.append((plain_name(f"{prefix}{key}"), text[:TEXT_LIMIT]))
    return rows[:MOST_PARAMS]


def _score_table(facts: VersionFacts) -> list[str]:
    if not facts.scores:
        return []
    rows = [("data", "side", "metric", "rows", "base", "previous", "this", "interval"), ("---",) * 8]
    for score in facts.scores:
        base, previous = _answer(facts.base_scores, score), _answer(facts.previous_scores, score)
        this, interval = f"**{score.score:.3f}**", f"{score.low:.3f}–{score.high:.3f}"
        rows.append(
            (f"`{score.dataset[:SHORT]}`", score.side, score.metric, str(score.n), base, previous, this, interval)
        )
    return ["", *map(_table_row, rows)]


def _answer(scores: Iterable[EvaluationRecord], asked: EvaluationRecord) -> str:
    """The score on the very same rows, or nothing."""
    question = (asked.dataset, asked.side, asked.metric, asked.keys)
    for score in scores:
        if (score.dataset, score.side, score.metric, score.keys) == question:
            return f"{score.score:.3f}"
    return ""


def _relatives(facts: VersionFacts) -> list[str]:
    lines = [""]
    for link in facts.near.links:
        if link.child == facts.version.ref:
            node = facts.near.nodes[link.parent]
            lines.append(f"- {link.role}: {_version_link(node.ref) if _is_version(node) else _cell(node.label)}")
    lines += [
        f"- {link.role} of {_version_link(link.child)}" for link in facts.near.links if link.child != facts.version.ref
    ]
    return lines


def _is_version(node: Node) -> bool:
    return node.kind in ("adapter", "merged")


def _version_link(ref: str) -> str:
    name, _, number = ref.partition(":")
    return f"[{ref}](#/models/{name}/versions/{number})"


def _table_row(cells: Sequence[str]) -> str:
    """One row; hard spaces keep the columns apart, because MLflow's tables have no padding."""
    return "".join(f"| {cell if cell == '---' else _cell(cell) + SPACE} " for cell in cells) + "|"


def _cell(text: str) -> str:
    """Text that stays inside its table cell and is text, not HTML."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
