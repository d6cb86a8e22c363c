"""Commands that check, plan, train, compare and merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.speaking import Ref, SpecPath, app, ready, tell


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


def check_data(*paths: str) -> None:
    """Refuse at once, for all specs together, what can be seen of bad data without Great Expectations and Prefect."""
    from tasks.data.early import refuse_early
    from tasks.errors import DataRefused, Problem, raise_if_any
    from tasks.spec_files import load_adapter_spec

    found: list[Problem] = []
    for path in paths:
        try:
            refuse_early(load_adapter_spec(path))
        except DataRefused as refused:
            found += refused.problems
    raise_if_any(DataRefused, found)


def check_recipe(path: str) -> None:
    """The same for a merge recipe."""
    from tasks.merging.rules import check_rules
    from tasks.spec_files import load_merge_spec

    check_rules(load_merge_spec(path))


@app.command()
def validate(
    spec: Annotated[str, typer.Argument(metavar="SPEC|FILE", help="Adapter spec, or a data file or folder.")],
    redact: Annotated[bool, typer.Option("--redact", help="Leave the texts of rows out of the report.")] = False,
    suite: Annotated[str | None, typer.Option(help="Write the Great Expectations suite to this JSON file.")] = None,
    docs: Annotated[str | None, typer.Option(help="Build Great Expectations' own Data Docs in this folder.")] = None,
) -> None:
    """Check a data set: what is accepted, what is kept out and why. A bare file is read by the names of its columns.

    Example: `factory validate examples/quickstart/triage.yaml`
    """
    from tasks.data.early import refuse_early
    from tasks.data.guess import is_data, spec_of_file
    from tasks.spec_files import load_adapter_spec

    if not is_data(spec):
        check_adapter_specs(spec)
    loaded = spec_of_file(spec) if is_data(spec) else load_adapter_spec(spec)
    refuse_early(loaded)
    ready()
    from flows.places import writing_to
    from flows.validate import validate as flow

    data = flow(str(Path(spec).absolute()) if is_data(spec) else spec, redact)
    kept_out = data.snapshot.quarantine(20)
    lines = [
        f"{data.record.source} row {q['row']} {q['field']}: {'(text left out)' if redact else q['reason']}"
        for q in kept_out
    ]
    more = data.record.quarantined - len(kept_out)
    pages = []
    if suite:
        from tasks.data.suites import write_suite

        with writing_to(Path(suite), "--suite"):
            pages.append(f"suite {write_suite(data.snapshot.suite, Path(suite))}")
    if docs:
        from tasks.data.layouts import columns_of_rows
        from tasks.data.suites import write_data_docs

        with writing_to(Path(docs), "--docs"):
            pages.append(f"docs {write_data_docs(data.snapshot.suite, columns_of_rows(loaded.data), Path(docs))}")
    tell(data.record, *lines, *([f"... and {more} more"] if more > 0 else []), *pages, f"snapshot {data.digest}")


@app.command()
def plan(
    spec: SpecPath,
    device: Annotated[str | None, typer.Option(help="Memory of the GPU to plan for, such as 24GiB.")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Rewrite the spec so that it fits; its comments stay.")] = False,
) -> None:
    """What a training run will need in memory, before anything is loaded: the base's config is enough.

    Example: `factory plan examples/quickstart/triage.yaml --device 24GiB`
    """
    check_adapter_specs(spec)
    ready()
    from flows.planning import filled, made_to_fit, side_by_side
    from flows.publish import memory_table
    from tasks.fitting import as_yaml
    from tasks.memory import parse_size, refuse_if_too_large
    from tasks.spec_files import load_adapter_spec

    room = parse_size(device) if device else None
    changes = made_to_fit(spec, room) if fit else {}
    loaded = filled(load_adapter_spec(spec))
    made, table = side_by_side(loaded, room)
    told = [f"{spec}: {path} is now {as_yaml(value)}" for path, value in changes.items()]
    told += [f"{path} {reason}" for path, reason in loaded.chosen.items()]
    tell(made, *told, memory_table(made), table)
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
    check_data(spec)
    ready()
    from flows.promote import refuse_unless_passed
    from flows.train import train as flow

    done = flow(spec, promote)
    state = "champion" if done.promoted else "registered, not promoted"
    tell(
        done,
        f"{done.version.ref}: {state}; {done.scores.metric} {done.scores.score:.3f}, base {done.base_scores.score:.3f}",
    )
    if promote:
        refuse_unless_passed(done.decision)


@app.command("import")
def import_folder(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="PEFT folder that was made elsewhere.")],
    spec: Annotated[str, typer.Option(help="Adapter spec of its task: base, data to judge on, gates.")],
) -> None:
    """Take in an adapter that was made elsewhere, through the strict door; `factory promote` then judges it.

    Example: `factory import downloads/triage-lora --spec examples/quickstart/triage.yaml`
    """
    check_adapter_specs(spec)
    check_data(spec)
    ready()
    from flows.imports import import_adapter

    done = import_adapter(str(Path(folder).absolute()), spec)
    own, base = done.scores, done.base_scores
    tell(done, f"{done.version.ref}: registered; {own.metric} {own.score:.3f}, base {base.score:.3f}")


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
    check_data(*specs)
    ready()
    from flows.fleet import fleet as flow
    from flows.fleet import refuse_unless_all_passed

    done = flow(specs, promote, over_pool)
    tell(
        done,
        *(f"{o.version.ref}: {o.scores.score:.3f}, base {o.base_scores.score:.3f}" for o in done.values() if o),
    )
    if promote:
        refuse_unless_all_passed(done)


@app.command()
def compare(
    spec: SpecPath,
    methods: Annotated[str | None, typer.Option(help="Comma-separated rows of the method catalogue.")] = None,
    ranks: Annotated[str | None, typer.Option(help="Comma-separated ranks; alpha / rank stays.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per setting; their mean gets a row of its own.")] = 1,
    keep_alpha: Annotated[bool, typer.Option("--keep-alpha", help="With --ranks: alpha stays instead.")] = False,
) -> None:
    """One task, several methods and ranks, one table.

    Example: `factory compare examples/quickstart/triage.yaml --methods lora,rslora,dora --ranks 4,16`
    """
    check_adapter_specs(spec)
    check_data(spec)
    ready()
    from flows.compare import compare as flow
    from tasks.errors import SpecRefused

    try:
        numbers = [int(rank) for rank in ranks.split(",")] if ranks else None
    except ValueError:
        raise SpecRefused.one(
            "E-SPEC-014", "--ranks", f"{ranks!r} is no list of numbers", "write --ranks 4,8,16"
        ) from None
    names = [name.strip() for name in methods.split(",")] if methods else None
    table = flow(spec, names, numbers, seeds, keep_alpha)
    tell(table, table)


@app.command()
def trim(
    adapter: Ref,
    energy: Annotated[float, typer.Option(min=0.5, max=1, help="Share of every module's squared norm to keep.")] = 0.99,
) -> None:
    """Cut an adapter to the smallest rank that keeps its update, judge it again and register it beside its parent.

    Example: `factory trim triage@champion --energy 0.99`
    """
    ready()
    from flows.trim import trim as flow

    done = flow(adapter, energy)
    scores = f"{done.scores.metric} {done.scores.score:.3f}, {done.parent.ref} {done.parent_scores.score:.3f}"
    tell(done, f"{done.version.ref}: rank {done.rank} of {done.parent_rank}, {done.lost:.2%} cut off; {scores}")


@app.command()
def merge(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Merge recipe, a YAML file.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder to export the model to.")] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Merge again what is served and contains a refreshed adapter.")
    ] = False,
    only_list: Annotated[bool, typer.Option("--list", help="With --stale: say which, and end.")] = False,
) -> None:
    """Merge adapters on their exact updates, judge every task, export a transformers folder.

    Example: `factory merge examples/quickstart/merge.yaml --out merged`
    """
    if stale:
        ready()
        from flows.merge_stale import merged_again, stale_merges
        from flows.wiring import opened

        marked = stale_merges(opened())
        said = [one.sentence for one in marked] or ["every served merge contains the champions of its tasks"]
        if only_list or not marked:
            tell(marked, *said)
            return
        again = merged_again(opened(), marked)
        tell(again, *said, *(f"{one.version.ref}: {one.chosen}; {one.decision.sentence}" for one in again))
        for one in again:
            one.decision.refuse_unless_passed()
        return
    if recipe is None:
        from tasks.errors import SpecRefused

        raise SpecRefused.one("E-SPEC-014", "RECIPE", "is missing", "name a merge recipe, or ask with --stale")
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
def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name, name:version or name@alias")],
    out: Annotated[str, typer.Option(help="New folder (gguf: file) to write.")],
    form: Annotated[str, typer.Option("--format", help="transformers, adapter, gguf or mlflow.")] = "transformers",
    rank: Annotated[int | None, typer.Option(min=1, help="adapter of a merge: at most this rank.")] = None,
    energy: Annotated[
        float | None, typer.Option(min=0, max=1, help="adapter of a merge: the share of energy it must keep.")
    ] = None,
) -> None:
    """Write a version in the form that a server takes; what the form costs is measured and said.

    Example: `factory export triage@champion --format transformers --out triage-model`
    """
    ready()
    from flows.export import export as flow

    done = flow(name, form, str(Path(out).resolve()), rank, energy)
    tell(done, f"{done.ref} as {done.form} in {done.target}{'; ' + done.note if done.note else ''}")
