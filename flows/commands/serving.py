"""Commands about what is served: champions, traffic, retraining."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.speaking import Ref, TaskName, app, ready, tell


@app.command()
def watch(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="One task; all served ones by default.")] = None,
    traffic: Annotated[str | None, typer.Option(help="Traffic file: JSONL, CSV or Parquet.")] = None,
) -> None:
    """Judge new traffic of served tasks: what moved, what it costs, what to do.

    Example: `factory watch triage --traffic next-quarter.jsonl`
    """
    ready()
    from flows.watch import watch as flow

    found = flow(task, str(Path(traffic).resolve()) if traffic else None)
    tell(found, *(f"{w.version.ref}: {w.report.verdict} -> {w.report.action}\n  {w.report.sentence}" for w in found))


@app.command()
def traffic(
    verb: Annotated[Literal["add"], typer.Argument(metavar="add")],
    task: TaskName,
    source: Annotated[str, typer.Argument(metavar="FILE|-", help="JSONL, CSV or Parquet; - is JSONL from a pipe.")],
) -> None:
    """Take in requests of a task, and their labels whenever these come: each counts once, by its id.

    Example: `factory traffic add triage next-quarter.jsonl`
    """
    ready()
    from flows.traffic import traffic_add

    done = traffic_add(task, source if source == "-" else str(Path(source).resolve()))
    reasons = [f"  {count:,} x {reason}" for reason, count in list(done.ingest.reasons.items())[:20]]
    tell(done, done.sentence, *reasons)


@app.command()
def retrain(
    task: TaskName,
    traffic: Annotated[str | None, typer.Option(help="Labelled traffic file.")] = None,
    replay_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of replayed rows; the spec's by default.")
    ] = None,
    start: Annotated[
        Literal["base", "champion"] | None, typer.Option(help="base or champion; the spec's by default.")
    ] = None,
    promote: Annotated[bool, typer.Option(help="Serve the candidate if it passes every gate.")] = True,
    labels_changed: Annotated[
        str | None, typer.Option(metavar="SINCE", help="Like inputs have other labels since this date or time.")
    ] = None,
) -> None:
    """Teach a moved task again: fresh rows plus replay; refused if it forgets (exit 5).

    Example: `factory retrain triage --traffic next-quarter.jsonl`
    """
    ready()
    from flows.promote import refuse_unless_passed
    from flows.retrain import retrain as flow

    source = str(Path(traffic).resolve()) if traffic else None
    done = flow(task, source, None, replay_share, start, promote, labels_changed)
    state = "champion" if done.promoted else "kept, not promoted"
    tell(done, f"{done.version.ref}: {state}; {done.decision.sentence}")
    if promote:
        refuse_unless_passed(done.decision)


@app.command()
def promote(candidate: Ref) -> None:
    """Hold a version against the champion and serve it if every gate passes.

    Example: `factory promote triage:3`
    """
    ready()
    from flows.promote import promote as flow

    done = flow(candidate)
    tell(done, f"{done.ref} is champion (was {done.previous})")


@app.command()
def rollback(task: TaskName) -> None:
    """Serve the champion before this one again.

    Example: `factory rollback triage`
    """
    ready()
    from flows.rollback import rollback as do

    done = do(task)
    tell(done, f"{done.ref} is champion again (was {done.previous})")
