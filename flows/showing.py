"""The ledger as tables for the terminal."""

from __future__ import annotations

from typing import Any

from flows.report import Table
from flows.wiring import Home


def all_names(home: Home) -> tuple[Any, ...]:
    """Every registered name with its champion: (plain value, table)."""
    rows = []
    for name in home.ledger.listed():
        served = f"{name.name}:{name.champion}" if name.champion else ""
        score = next((e for e in home.ledger.evaluations(served) if e.side == "test"), None) if served else None
        metric, value = (score.metric, score.score) if score else ("", "")
        rows.append((name.name, name.kind, name.versions, served, metric, value, f"{name.created_at:%Y-%m-%d %H:%M}"))
    columns = ("name", "kind", "versions", "champion", "metric", "score", "newest")
    table = Table("registered", columns, tuple(rows), "" if rows else "nothing is registered yet: try `factory demo`")
    return [dict(zip(columns, row, strict=True)) for row in rows], table


def one_version(home: Home, ref: str) -> tuple[Any, ...]:
    """One version with its facts, scores and the promotions of its name: (plain value, tables)."""
    version = home.ledger.version(ref)
    champion = home.ledger.champion(version.name)
    facts = {
        "version": version.ref,
        "kind": version.kind,
        "champion": champion is not None and champion.number == version.number,
        **withdrawal(home, version.ref),
        "created": f"{version.created_at:%Y-%m-%d %H:%M:%S} UTC",
        "artifact": str(home.store.path(version.artifact)),
        "base": version.base[:12],
        "made from": ", ".join(f"{role} {parent}" for role, parent in version.parents),
        "code": version.code[:12],
        **({"run": version.run} if version.run else {}),  # as `factory diagnose` takes it
        "manifest": str(home.store.path(version.manifest)),
        "signed by": ", ".join(signature.key[:12] for signature in home.ledger.signatures(version.ref)),
        **{name: f"{value:g}" for name, value in version.metrics.items()},
    }
    scores = tuple(
        (e.dataset[:12], e.side, e.metric, e.score, e.low, e.high, e.n) for e in home.ledger.evaluations(version.ref)
    )
    moves = tuple((p.seq, p.move, p.previous or "", p.number, p.reason) for p in home.ledger.history(version.name))
    return (
        {**facts, "scores": scores, "history": moves},
        Table(version.ref, ("what", "value"), tuple(facts.items())),
        Table("scores", ("data", "side", "metric", "score", "low", "high", "n"), scores),
        Table(f"promotions of {version.name}", ("seq", "move", "from", "to", "reason"), moves),
    )


def withdrawal(home: Home, ref: str) -> dict[str, str]:
    """That and why a version may not be used any more; nothing where it may."""
    found = home.ledger.withdrawal(ref)
    if found is None:
        return {}
    of = "" if found.cause == found.version else f" with {found.cause}"
    return {"withdrawn": f"{found.created_at:%Y-%m-%d}{of}: {found.reason}"}
