"""Commands that look into what was made: the curve of a run, the inside of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.speaking import app, ready, tell


@app.command()
def diagnose(
    source: Annotated[
        str,
        typer.Argument(metavar="RUN|ADAPTER|FILE", help="A run's id, an adapter, or a Trainer's trainer_state.json."),
    ],
    out: Annotated[str | None, typer.Option(help="Where to write the figure (SVG).")] = None,
) -> None:
    """What a training curve says: the curve, the findings with their figures, and what to change.

    Example: `factory diagnose triage@champion`
    """
    ready()
    from flows.diagnose import reading_of, told
    from flows.wiring import opened

    reading = reading_of(opened(), source, Path(out) if out else None)
    tell(reading, *told(reading))
