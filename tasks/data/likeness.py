"""What near pairs mean for a set: rows that leak into what judges, and rows that say again what another has said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tasks.data.admission import Check, Fallen, NearPair, shown
from tasks.data.examples import without_template
from tasks.data.leakage import Placed
from tasks.data.near import Twin, sketches, twins
from tasks.specs import NearSpec, Side

SAMPLES = 3
PAIRS_KEPT = 200
_RANK: Mapping[Side, int] = {"test": 0, "validation": 1, "train": 2}


class Likeness(NamedTuple):
    """Rows that leak, with their reasons; rows that repeat another of their side; pairs and checks of the set itself.

    `notices` are the checks against what is not part of the set: earlier test slices and requests, if there are any.
    """

    leaking: list[Fallen]
    repeating: list[Placed]
    pairs: tuple[NearPair, ...]
    checks: tuple[Check, Check]
    notices: tuple[Check, ...]


def likeness(
    rows: Sequence[Placed],
    near: NearSpec,
    *,
    judged: Mapping[str, str],
    traffic: Mapping[str, str],
    field: str,
    template: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Likeness:
    """Near pairs among rows of which no two have the same input on two sides; a row that judges leaks into nothing.

    `judged` maps earlier test inputs to their slice, `traffic` those of requests to where they are: a row that is
    nearly a request is told and stays. What `template` says in every row makes no two of them alike.
    """
    rows = list({row.example.key: row for row in reversed(rows)}.values())[::-1]  # an input with many answers, once
    texts = [without_template(template, row.example.input) for row in rows]
    sketch = sketches(texts, on_progress)
    found = twins(texts, [_RANK[row.side] for row in rows], near.similarity, sketch)
    leaks = {at: _pair("leak", rows[at], rows[twin.other], twin) for at, twin in sorted(found.leaks.items())}
    repeats = {at: _pair("repeat", rows[at], rows[twin.other], twin) for at, twin in sorted(found.repeats.items())}
    learned = [at for at, row in enumerate(rows) if row.side != "test"]
    taught, said = [rows[at] for at in learned], [texts[at] for at in learned]

    def met(known: Mapping[str, str]) -> list[NearPair]:
        bare = {without_template(template, text): name for text, name in known.items()}
        return _earlier(taught, said, bare, near, sketch[learned])

    earlier, notices = met(judged), []
    if judged:
        notices.append(_check("no_near_frozen_row", earlier, len(learned), near, critical=near.leaks != "warn"))
    if traffic:
        notices.append(_check("traffic_is_not_learned_from", met(traffic), len(learned), near, critical=False))
    reasons = {pair.at: _reason(pair) for pair in (*earlier, *leaks.values())}
    return Likeness(
        leaking=[Fallen(at, "no_near_leak", field, reason) for at, reason in sorted(reasons.items())],
        repeating=[rows[at] for at in repeats if near.leaks == "warn" or rows[at].at not in reasons],
        pairs=(*list(leaks.values())[:PAIRS_KEPT], *list(repeats.values())[:PAIRS_KEPT]),
        checks=(
            _check("no_near_leak", list(leaks.values()), len(learned), near, critical=near.leaks != "warn"),
            _check("no_near_repeat", list(repeats.values()), len(rows), near, critical=False),
        ),
        notices=tuple(notices),
    )


def _earlier(
    rows: Sequence[Placed], texts: Sequence[str], judged: Mapping[str, str], near: NearSpec, sketch: Any
) -> list[NearPair]:
    """Rows that are nearly a known text, each with it."""
    import numpy as np

    if not judged or not rows:
        return []
    before = list(judged)
    both = np.concatenate([sketches(before), sketch])
    found = twins([*before, *texts], [0] * len(before) + [1] * len(rows), near.similarity, both).leaks
    return [
        _pair("leak", rows[at - len(before)], None, twin, judged[before[twin.other]], before[twin.other])
        for at, twin in sorted(found.items())
    ]


def _pair(
    kind: Literal["leak", "repeat"], row: Placed, other: Placed | None, twin: Twin, name: str = "", text: str = ""
) -> NearPair:
    return NearPair(
        kind=kind,
        at=row.at,
        file=row.example.file,
        row=row.example.row,
        side=row.side,
        input=row.example.input,
        other=_named(other) if other else name,
        other_input=other.example.input if other else text,
        similarity=round(twin.similarity, 4),
        same_target=other is not None and other.example.target == row.example.target,
    )


def _check(name: str, pairs: Sequence[NearPair], evaluated: int, near: NearSpec, *, critical: bool) -> Check:
    samples = tuple(f"row {p.row} ({p.side}): {_reason(p)}: {shown(p.input)}" for p in pairs[:SAMPLES])
    other = sum(not pair.same_target for pair in pairs) if name in ("no_near_leak", "no_near_repeat") else 0
    detail = f"similarity {near.similarity} or more" + (f", {other:,} of them with another answer" if other else "")
    return Check(name, "", "critical" if critical else "warning", not pairs, evaluated, len(pairs), samples, detail)


def _reason(pair: NearPair) -> str:
    return f"{pair.similarity:.2f} the same as {pair.other}: {shown(pair.other_input)}"


def _named(row: Placed) -> str:
    file = f" of {row.example.file}" if row.example.file else ""
    return f"{row.side} row {row.example.row}{file}"
