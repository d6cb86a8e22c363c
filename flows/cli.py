"""The command line: `factory COMMAND ...`. Each command imports what it needs when it runs, so that help is instant.

--json (results and problems as JSON on stdout), --quiet (no progress) and --debug (tracebacks, libraries' own logs) are
understood by every command, before or after its name.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

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
INTERRUPTED, READER_GONE = 130, 1  # as Typer has it where it meets them itself


def main(arguments: list[str] | None = None) -> NoReturn:
    """The console script. Exits with the code of the error contract."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    for name in ("json", "quiet", "debug"):
        setattr(manner, name, f"--{name}" in words)
    words = [word for word in words if word not in ("--json", "--quiet", "--debug")]
    manner.told = {}
    try:
        code = app(words, standalone_mode=False, prog_name="factory")
        if code == INTERRUPTED:  # Typer answers Ctrl-C with this code and no word
            raise KeyboardInterrupt
        if manner.told:
            print(json.dumps({"ok": True, "exit_code": 0, **manner.told}, default=str))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does the interpreter's own flush complain
        sys.exit(READER_GONE)
    except BaseException as error:  # the one place where every error becomes a line and a code
        sys.exit(_ended(error))
    sys.exit(code if isinstance(code, int) else 0)


def _ended(error: BaseException) -> int:
    """Lines to stderr, one JSON document to stdout where it was asked for, and the exit code."""
    from flows.complaints import as_json, complain

    if isinstance(error, typer.Abort):
        error = KeyboardInterrupt()
    if manner.debug and not isinstance(error, KeyboardInterrupt | SystemExit):
        import traceback

        traceback.print_exception(error)
    code = complain(error)
    if manner.json:
        print(json.dumps({**as_json(error), **manner.told}, default=str))
    return code


def ready() -> Any:
    """Settings loaded and the libraries' environment set, before any of them is imported."""
    from flows.progress import voice
    from infra.environment import export_environment
    from infra.settings import load_settings

    voice.quiet = manner.quiet or manner.json
    settings = load_settings()
    export_environment(settings, debug=manner.debug)
    settings.prefect_home.mkdir(parents=True, exist_ok=True)  # its embedded server does not start without
    return settings


def check_adapter_specs(*paths: str) -> None:
    """Read the specs before anything heavy loads or a server starts: what is wrong with them is said at once."""
    from tasks.errors import Problem, SpecRefused, raise_if_any
    from tasks.spec_files import load_adapter_spec

    found: list[Problem] = []
    for path in paths:
        try:
            load_adapter_spec(path)
        except SpecRefused as refused:
            found += refused.problems
    raise_if_any(SpecRefused, found)


def check_recipe(path: str) -> None:
    """The same for a merge recipe."""
    from tasks.merging.rules import check_rules
    from tasks.spec_files import load_merge_spec

    check_rules(load_merge_spec(path))


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


@app.command()
def validate(spec: SpecPath) -> None:
    """Check a spec's data: what is accepted, what is kept out and why.

    Example: `factory validate examples/quickstart/triage.yaml`
    """
    check_adapter_specs(spec)
    ready()
    from flows.validate import validate as flow

    data = flow(spec)
    kept_out = data.admission.quarantined if data.admission else ()
    lines = [f"{data.record.source} row {q.row} {q.field}: {q.reason}" for q in kept_out[:20]]
    more = [f"... and {len(kept_out) - 20} more"] if len(kept_out) > 20 else []
    tell(data.record, *lines, *more, f"snapshot {data.digest}")


@app.command()
def plan(
    spec: SpecPath,
    device: Annotated[str | None, typer.Option(help="Memory of the device to plan for, such as 24GiB.")] = None,
) -> None:
    """What a training run will need in memory, before anything is loaded.

    Example: `factory plan examples/quickstart/triage.yaml --device 24GiB`
    """
    check_adapter_specs(spec)
    ready()
    from flows.learn import plan_run
    from flows.publish import memory_table
    from flows.validate import base_folder
    from tasks.memory import parse_size, refuse_if_too_large
    from tasks.spec_files import load_adapter_spec

    loaded = load_adapter_spec(spec)
    made = plan_run(loaded, base_folder(loaded.base), parse_size(device) if device else None)
    tell(made, memory_table(made))
    refuse_if_too_large(made, loaded)


@app.command()
def train(
    spec: SpecPath,
    promote: Annotated[bool, typer.Option(help="Serve the version if it passes every gate.")] = True,
) -> None:
    """Train, evaluate, register and promote one adapter.

    Example: `factory train examples/quickstart/triage.yaml`
    """
    check_adapter_specs(spec)
    ready()
    from flows.train import train as flow

    done = flow(spec, promote)
    state = "champion" if done.promoted else "registered, not promoted"
    tell(
        done,
        f"{done.version.ref}: {state}; {done.scores.metric} {done.scores.score:.3f}, base {done.base_scores.score:.3f}",
    )
    if promote:
        done.decision.refuse_unless_passed()


@app.command()
def fleet(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Adapter specs.")],
    promote: Annotated[bool, typer.Option(help="Serve versions that pass every gate.")] = True,
    over_pool: Annotated[bool, typer.Option(help="One run per spec over the work pool.")] = False,
) -> None:
    """Train many adapters; those of one base share it.

    Example: `factory fleet examples/quickstart/*.yaml`
    """
    check_adapter_specs(*specs)
    ready()
    from flows.fleet import fleet as flow
    from flows.fleet import refuse_unless_all_passed

    done = flow(specs, promote, over_pool)
    tell(
        done,
        *(
            f"{task}: {o.version.ref} {o.scores.score:.3f}, base {o.base_scores.score:.3f}"
            for task, o in done.items()
            if o
        ),
    )
    if promote:
        refuse_unless_all_passed(done)


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
) -> None:
    """Teach a moved task again: fresh rows plus replay; refused if it forgets (exit 5).

    Example: `factory retrain triage --traffic next-quarter.jsonl`
    """
    ready()
    from flows.retrain import retrain as flow

    done = flow(task, str(Path(traffic).resolve()) if traffic else None, None, replay_share, start, promote)
    state = "champion" if done.promoted else "kept, not promoted"
    tell(done, f"{done.version.ref}: {state}; {done.decision.sentence}")
    if promote:
        done.decision.refuse_unless_passed()


@app.command()
def merge(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Merge recipe, a YAML file.")],
    out: Annotated[str | None, typer.Option(help="Folder to export the model to.")] = None,
) -> None:
    """Merge adapters on their exact updates, judge every task, export a transformers folder.

    Example: `factory merge examples/quickstart/merge.yaml --out merged`
    """
    check_recipe(recipe)
    ready()
    from flows.merge import merge as flow

    done = flow(recipe, str(Path(out).resolve()) if out else None)
    tell(
        done,
        f"{done.version.ref}: {done.chosen}; {done.decision.sentence}",
        *([f"exported to {done.folder}"] if done.folder else []),
    )
    done.decision.refuse_unless_passed()


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
    from flows.promote import rollback as flow

    done = flow(task)
    tell(done, f"{done.ref} is champion again (was {done.previous})")


@app.command()
def compare(
    spec: SpecPath,
    methods: Annotated[str | None, typer.Option(help="Comma-separated rows of the method catalogue.")] = None,
    ranks: Annotated[str | None, typer.Option(help="Comma-separated ranks; alpha / rank stays.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per setting.")] = 1,
) -> None:
    """One task, several methods and ranks, one table.

    Example: `factory compare examples/quickstart/triage.yaml --methods lora,rslora,dora --ranks 4,16`
    """
    check_adapter_specs(spec)
    ready()
    from flows.compare import compare as flow
    from tasks.errors import SpecRefused

    try:
        numbers = [int(rank) for rank in ranks.split(",")] if ranks else None
    except ValueError:
        raise SpecRefused.one(
            "E-SPEC-014", "--ranks", f"{ranks!r} is no list of numbers", "write --ranks 4,8,16"
        ) from None
    table = flow(spec, methods.split(",") if methods else None, numbers, seeds)
    tell(table, table)


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


if __name__ == "__main__":
    main()
