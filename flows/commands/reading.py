"""Commands that look into what was made: the curve of a run, the inside of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.speaking import Ref, app, ready, tell


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


@app.command()
def inspect(
    adapter: Ref,
    energy: Annotated[float, typer.Option(min=0.5, max=1, help="Share of the update that a rank must keep.")] = 0.99,
    against: Annotated[str | None, typer.Option(help="Another adapter of the same base: phi(i, j).")] = None,
    out: Annotated[str | None, typer.Option(help="Where to write the figure (SVG).")] = None,
) -> None:
    """What an adapter changes: norm, spectrum and amplification by module, and whether a smaller rank would do.

    Example: `factory inspect triage@champion`
    """
    ready()
    from flows.inspect import inside_of, look_table, phi_table
    from flows.wiring import opened

    look = inside_of(opened(), adapter, energy, against, Path(out) if out else None)
    tables = [look_table(look, energy)] if look.modules else []
    tables += [phi_table(look)] if look.phi else []
    tell(look, *tables, *look.advice, *([f"figure: {look.figure}"] if look.figure else []))
