"""The card of an exported model: where it comes from, what it scored, where it ends. All values are given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Score:
    """One task on its test rows; shares in [0, 1]."""

    task: str
    metric: str
    base: float
    expert: float
    exported: float
    rows: int


@dataclass(frozen=True)
class Card:
    """What is written about a model.

    Attributes:
        base: name and digest of the base.
        lineage: parents by reference, each with what is known of it ("triage:3" -> "adapter sha256 4f..., weight 1").
        recipe: settings of the merge, such as rule, density, scale and seed.
        limits: sentences about what the model was not judged on or cannot do.
    """

    name: str
    kind: str
    base: str
    lineage: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, object] = field(default_factory=dict)
    scores: Sequence[Score] = ()
    limits: Sequence[str] = ()
    licence: str = ""


def rendered(card: Card) -> str:
    """The card as Markdown with the front matter that model hubs read."""
    front = ["---", "library_name: transformers", "tags:", "- merge", f"pipeline_tag: {_PIPELINES[card.kind]}"]
    front += [f"license: {json.dumps(card.licence)}"] if card.licence else []
    parts = ["\n".join([*front, "---"]), f"# {_line(card.name)}", f"Base: {_line(card.base)}"]
    if card.lineage:
        parts += [
            "## Lineage",
            "\n".join(f"- {_line(ref)}: {_line(what)}" for ref, what in sorted(card.lineage.items())),
        ]
    if card.recipe:
        rows = [f"| {_line(key)} | {_line(value)} |" for key, value in card.recipe.items()]
        parts += ["## Recipe", "\n".join(["| setting | value |", "|---|---|", *rows])]
    if card.scores:
        rows = [
            f"| {_line(s.task)} | {_line(s.metric)} | {s.base:.3f} | {s.expert:.3f} | {s.exported:.3f} | {s.rows} |"
            for s in card.scores
        ]
        header = ["| task | metric | base | its own adapter | this model | rows |", "|---|---|---|---|---|---|"]
        parts += ["## Scores on test rows", "\n".join([*header, *rows])]
    limits = card.limits or ("Judged on nothing yet.",)
    parts += ["## Limits", "\n".join(f"- {_line(limit)}" for limit in limits)]
    return "\n\n".join(parts) + "\n"


_PIPELINES = {"generation": "text-generation", "classification": "text-classification"}


def _line(value: object) -> str:
    """One line that breaks no table.

    >>> _line("a | b")
    'a \\\\| b'
    """
    return " ".join(str(value).split()).replace("|", "\\|")
