"""What every command shares: the Typer app, how this process speaks, settings made ready, results told."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="factory",
    help="One base model, many tasks: train, gate, register, watch, retrain and merge QLoRA adapters.",
    epilog="Every command takes --json, --quiet and --debug. Exit codes: 0 ok, 2 spec, 3 data, 4 artifact, 5 gate, "
    "6 conflict, 7 dependency down, 8 no space, 70 bug.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="Adapter spec, a YAML file.")]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Name of a task.")]
Ref = Annotated[str, typer.Argument(metavar="NAME", help="name, name:version or name@alias")]


@dataclass
class Manner:
    """How this process speaks."""

    json: bool = False
    quiet: bool = False
    debug: bool = False
    told: dict[str, Any] = field(default_factory=dict)


manner = Manner()


def ready() -> Any:
    """Settings loaded and the libraries' environment set, before any of them is imported."""
    from flows.progress import voice
    from infra.environment import export_environment
    from infra.settings import load_settings
    from infra.temporary_server import shield

    voice.quiet = manner.quiet or manner.json
    settings = load_settings()
    export_environment(settings, debug=manner.debug)
    shield()
    settings.prefect_home.mkdir(parents=True, exist_ok=True)  # its embedded server does not start without
    return settings


def tell(value: Any, *parts: Any) -> None:
    """The result: sentences and tables for people, or the value for the JSON document that ends the command."""
    if manner.json:
        manner.told = {"result": plain(value)}
        return
    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            print_table(part)


def print_table(table: Any) -> None:
    """A table as wide as it needs to be where nobody looks at a terminal."""
    from rich.console import Console

    from flows.report import as_rich

    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(as_rich(table))


def show_gates(error: BaseException) -> None:
    """The gates of a refusal with their figures, where it knows them."""
    decision = getattr(error, "decision", None)
    if decision is None:
        return
    if manner.json:
        manner.told = manner.told or {"result": plain(decision)}
        return
    from flows.publish import gates_table

    print_table(gates_table(decision))


def plain(value: Any) -> Any:
    """Dataclasses as dicts; per-row outcomes, which fill screens, are left to the ledger."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
        return {
            name: item
            for name, item in found.items()
            if name not in ("keys", "outcomes", "confidences", "admission", "snapshot")
        }
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
