"""Commands about what is remembered: the ledger, the store, the mirror."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.speaking import Ref, app, ready, tell


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="name, name:version or name@alias")] = None,
) -> None:
    """What is registered: all names, or one version with its scores and history.

    Example: `factory show triage@champion`
    """
    ready()
    from flows.showing import all_names, one_version
    from flows.wiring import opened

    value, *tables = one_version(opened(), name) if name else all_names(opened())
    tell(value, *tables)


@app.command()
def lineage(
    name: Ref,
    down: Annotated[
        bool, typer.Option("--down", help="What was made from it, instead of what it was made from.")
    ] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a Mermaid drawing.")] = False,
) -> None:
    """Where a version came from, down to data, base and code; or what came from it.

    Example: `factory lineage desk@champion`
    """
    ready()
    from flows.wiring import opened
    from registry.lineage import as_json, tree
    from registry.lineage import mermaid as drawn

    found = opened().ledger.lineage(name, "down" if down else "up")
    tell(as_json(found), drawn(found) if mermaid else tree(found))


@app.command()
def fsck() -> None:
    """Check every promise of the ledger and the store; exit 4 if one is broken.

    Example: `factory fsck`
    """
    ready()
    from flows.wiring import opened
    from registry.fsck import fsck as check
    from tasks.errors import ArtifactRefused, Problem

    home = opened()
    findings = check(home.ledger, home.store)
    tell(findings, *(["every invariant holds"] if not findings else []))
    if findings:
        raise ArtifactRefused(
            *(Problem(*finding) if not isinstance(finding, Problem) else finding for finding in findings)
        )


@app.command()
def reconcile() -> None:
    """Bring MLflow up to the ledger: send what an outage held back.

    Example: `factory reconcile`
    """
    ready()
    from flows.wiring import opened
    from registry.errors import DependencyDown
    from registry.mirror import reconcile as bring_up

    home = opened()
    report = bring_up(home.ledger, home.store, home.tracker)
    said = f"{report.versions} versions compared, {report.changes} changes sent, {report.pending} entries wait"
    tell(report._asdict(), said)
    if report.problem:
        raise DependencyDown(report.problem)
