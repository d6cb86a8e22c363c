"""Commands about this machine: what it has, what runs on it, and the whole cycle on it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flows.commands.speaking import app, ready, tell


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(metavar="adapter|merge", help="Which spec.")] = "adapter",
) -> None:
    """JSON Schema of a spec, for editors: every key, its default and what it means.

    Example: `factory schema adapter > adapter.schema.json`
    """
    from tasks.errors import SpecRefused
    from tasks.specs import AdapterSpec, MergeSpec, Spec

    known: dict[str, type[Spec]] = {"adapter": AdapterSpec, "merge": MergeSpec}
    if kind not in known:
        raise SpecRefused.one("E-SPEC-015", "schema", f"{kind!r} is no kind of spec", "write adapter or merge")
    print(json.dumps(known[kind].model_json_schema(), indent=2))


@app.command()
def doctor() -> None:
    """Check this machine: versions, NF4, disk, ledger, servers.

    Example: `factory doctor`
    """
    settings = ready()
    from infra.doctor import checks

    found = list(checks(settings))
    tell(found, *(f"{'ok ' if c.ok else 'BAD'} {c.name}: {c.found}{'' if c.ok else f' -> {c.remedy}'}" for c in found))
    if not all(c.ok for c in found):
        raise SystemExit(7)


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return, and leave the servers running.")] = False,
) -> None:
    """Start the Prefect server, the MLflow server and a worker on this machine, with all deployments.

    Example: `factory up`
    """
    ready()
    from infra.servers import up as start
    from infra.settings import asked_settings

    start(asked_settings(), detach=detach)


@app.command()
def down() -> None:
    """Stop what `factory up` started.

    Example: `factory down`
    """
    ready()
    from infra.servers import down as stop
    from infra.settings import asked_settings

    stopped = stop(asked_settings())
    tell(stopped, *([] if stopped else ["nothing was running"]))


@app.command()
def demo(
    short: Annotated[bool, typer.Option("--short", help="Fewer rows and steps: the same path in less time.")] = False,
) -> None:
    """The whole cycle on the embedded base: train three, promote, drift, retrain, merge, export.

    Example: `factory demo`
    """
    ready()
    from flows.demo import demo as run

    run(short=short)
