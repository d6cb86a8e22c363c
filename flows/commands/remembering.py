"""Commands about what is remembered: the ledger, the store, the mirror."""

from __future__ import annotations

from pathlib import Path
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
    contains: Annotated[
        bool,
        typer.Option("--contains", help="Which models contain it, and so have to be made again if it is withdrawn."),
    ] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a Mermaid drawing.")] = False,
    page: Annotated[str | None, typer.Option(metavar="FILE", help="As a page to click in, one HTML file.")] = None,
) -> None:
    """Where a version came from, down to data, base and code; or what came from it, or from dataset:DIGEST.

    Example: `factory lineage desk@champion --page desk.html`
    """
    ready()
    from flows.wiring import opened
    from registry.lineage import as_json, tree
    from registry.lineage import mermaid as drawn

    ledger = opened().ledger
    if contains:
        found = ledger.containing(name)
        tell(found, *(found or [f"nothing contains {name}"]))
        return
    walked = ledger.lineage(name, "down" if down else "up")
    if page:
        from flows.lineage_page import write_page

        path = write_page(walked, Path(page).resolve())
        tell({"page": str(path), **as_json(walked)}, f"{len(walked.nodes)} nodes in {path}")
    else:
        tell(as_json(walked), drawn(walked) if mermaid else tree(walked))


@app.command()
def withdraw(
    name: Ref,
    reason: Annotated[str, typer.Option(help="Why, for everyone who meets it later.")],
) -> None:
    """Mark a version, and every model that contains it, as not to be used any more.

    Example: `factory withdraw triage:3 --reason "learned from leaked mail"`
    """
    ready()
    from flows.withdraw import withdraw as do

    done = do(name, reason)
    tell(done, *done.sentences)


@app.command()
def sign(name: Ref) -> None:
    """Sign a version that was registered before there was a key; every byte is verified first.

    Example: `factory sign triage:3`
    """
    ready()
    from flows.wiring import opened

    version = opened().ledger.sign(name)
    tell({"version": version.ref}, f"{version.ref} is signed")


@app.command()
def fsck(
    repair: Annotated[bool, typer.Option("--repair", help="Set right what needs no guess.")] = False,
) -> None:
    """Check every promise of the ledger and the store; exit 4 if one is broken.

    Example: `factory fsck --repair`
    """
    ready()
    from flows.judging_rows import shared_rows
    from flows.wiring import opened
    from registry.errors import IntegrityError
    from registry.fsck import fsck as check

    home = opened()
    repaired: tuple[str, ...] = ()
    if repair:
        from registry.copies import in_mlflow
        from registry.repair import repair as set_right

        repaired = set_right(home.ledger, home.store, in_mlflow(home.ledger, home.tracker))
    findings = (*check(home.ledger, home.store), *shared_rows(home))
    value = {"repaired": list(repaired), "findings": [str(finding) for finding in findings]}
    tell(value, *repaired, *(["every invariant holds"] if not findings else []))
    if findings:
        raise IntegrityError(*findings)


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Take it away; without, it is only named.")] = False,
) -> None:
    """Stored objects that nothing refers to, and what killed runs left, when a day has passed.

    Example: `factory gc --delete`
    """
    ready()
    import time

    from flows.wiring import opened
    from registry.sweep import rubbish, sweep

    home = opened()
    act = sweep if delete else rubbish
    found = act(home.ledger, home.store, now_seconds=time.time(), workshops=[home.scratch()])
    total = sum(item.bytes for item in found)
    lines = [f"{item.kind} {item.name}: {item.bytes:,} bytes, {item.age_seconds / 3600:.0f} h old" for item in found]
    verb = "removed" if delete else "would be removed; factory gc --delete does it"
    tell([item._asdict() for item in found], *lines, f"{len(found)} things, {total:,} bytes {verb}")


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
