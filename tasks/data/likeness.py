"""What near pairs mean for a set: rows that leak into what judges, and rows that say again what another has said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tasks.data.admission import Check, Fallen, NearPair, shown
from tasks.data.leakage import Placed
from tasks.data.near import Twin, twins
from tasks.specs import NearSpec, Side

SAMPLES = 3
PAIRS_KEPT = 200
_RANK: Mapping[Side, int] = {"test": 1, "validation": 2, "train": 3}  # rank 0 is what judged before


class Likeness(NamedTuple):
    """Rows that leak, with their reasons; rows that repeat another of their side; both as pairs and as checks."""

    leaking: list[Fallen]
    repeating: list[Placed]
    pairs: tuple[NearPair, ...]
    checks: tuple[Check, Check]


def likeness(
    rows: Sequence[Placed],
    near: NearSpec,
    *,
    judged: Mapping[str, str],
    field: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Likeness:
    """Near pairs among rows of which no two have the same input on two sides; a row that judges leaks into nothing.

    `judged` maps earlier test inputs to their slice.
    """
    rows = list({row.example.key: row for row in reversed(rows)}.values())[::-1]  # an input with many answers, once
    own = {row.example.input for row in rows if row.side == "test"}
    before = [text for text in judged if text not in own]
    first = len(before)
    texts = [*before, *(row.example.input for row in rows)]
    ranks = [0] * first + [_RANK[row.side] for row in rows]
    found = twins(texts, ranks, near.similarity, on_progress)

    def pair(at: int, kind: str, twin: Twin) -> NearPair:
        row, other = rows[at - first], rows[twin.other - first] if twin.other >= first else None
        return NearPair(
            kind=kind,  # type: ignore[arg-type]
            file=row.example.file,
            row=row.example.row,
            side=row.side,
            input=row.example.input,
            other=_named(other) if other else judged[texts[twin.other]],
            other_input=texts[twin.other],
            similarity=round(twin.similarity, 4),
            same_target=other is not None and other.example.target == row.example.target,
        )

    learned = {at: twin for at, twin in sorted(found.leaks.items()) if at >= first and rows[at - first].side != "test"}
    leaks = {at: pair(at, "leak", twin) for at, twin in learned.items()}
    repeats = {at: pair(at, "repeat", twin) for at, twin in sorted(found.repeats.items()) if at >= first}
    asked = sum(row.side != "test" for row in rows)
    return Likeness(
        leaking=[Fallen(rows[at - first].at, "no_near_leak", field, _reason(leak)) for at, leak in leaks.items()],
        repeating=[rows[at - first] for at in repeats if at not in leaks or near.leaks == "warn"],
        pairs=(*list(leaks.values())[:PAIRS_KEPT], *list(repeats.values())[:PAIRS_KEPT]),
        checks=(
            _check("no_near_leak", list(leaks.values()), asked, near, critical=near.leaks != "warn"),
            _check("no_near_repeat", list(repeats.values()), len(rows), near, critical=False),
        ),
    )


def _check(name: str, pairs: Sequence[NearPair], evaluated: int, near: NearSpec, *, critical: bool) -> Check:
    samples = tuple(f"row {p.row} ({p.side}): {_reason(p)}: {shown(p.input)}" for p in pairs[:SAMPLES])
    other = sum(not pair.same_target for pair in pairs)
    detail = f"similarity {near.similarity} or more" + (f", {other:,} of them with another answer" if other else "")
    return Check(name, "", "critical" if critical else "warning", not pairs, evaluated, len(pairs), samples, detail)


def _reason(pair: NearPair) -> str:
    return f"{pair.similarity:.2f} the same as {pair.other}: {shown(pair.other_input)}"


def _named(row: Placed) -> str:
    file = f" of {row.example.file}" if row.example.file else ""
    return f"{row.side} row {row.example.row}{file}"
