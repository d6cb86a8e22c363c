"""One task, several methods and ranks, one table: what each costs and what each gains, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from prefect import flow

from flows.learn import Slice, planned, scored, settled, slice_of, threads
from flows.policy import on_gpu
from flows.progress import voice
from flows.publish import publish_comparison
from flows.report import Bytes, Seconds, Share, Table
from flows.teach import trained
from flows.validate import identified, validated
from flows.wiring import opened
from registry.records import EvaluationRecord
from tasks.errors import Problem, SpecRefused, raise_if_any
from tasks.methods.catalogue import METHODS, refusal_of
from tasks.spec_files import load_adapter_spec
from tasks.specs import AdapterSpec, MethodSpec
from tasks.specs.adapter import WANT_THE_WHOLE_BASE

TIMED_ROWS = 32
NOTE = """95 % intervals on the test rows; peak memory above what was held when training began; forgotten: nats per
token on text that the base writes itself; a pass over test rows, the base's own being 1."""


@dataclass(frozen=True)
class Upkeep:
    """What serving costs: seconds of a forward pass over the base's, and nats per token that the base forgets."""

    attached: float
    merged: float | None
    forgotten: float | None


@dataclass(frozen=True)
class Row:
    """One setting's cost and gain."""

    method: str
    rank: int
    seed: int
    trainable_share: float
    peak_bytes: int
    seconds: float
    bytes: int
    scores: EvaluationRecord
    upkeep: Upkeep


@flow(name="compare", description="Train one task with several methods and ranks, and put the results side by side.")
def compare(spec_path: str, methods: list[str] | None = None, ranks: list[int] | None = None, seeds: int = 1) -> Table:
    """The table that chooses a method. Nothing is registered or promoted; runs are in MLflow.

    Args:
        spec_path: The adapter spec, a YAML file.
        methods: Rows of the method catalogue; the spec's own by default.
        ranks: Ranks to try; the spec's own by default. alpha / rank stays as in the spec.
        seeds: Runs per setting.
    """
    home, spec = opened(), load_adapter_spec(spec_path)
    refuse_unknown(methods or [], ranks or [])
    base = identified(home, spec.base)
    data = validated(home, spec)
    spec = settled(spec, data)
    test = slice_of(spec, data)
    learn, choose = data.snapshot.examples("train"), data.snapshot.examples("validation")
    before = scored(spec, [test], None, learn)[test.name]
    settings = [
        setting(spec, method, rank, seed)
        for method in methods or [spec.method.name]
        for rank in ranks or [spec.method.rank]
        for seed in range(spec.seed, spec.seed + seeds)
    ]
    refuse_impossible(settings)
    plans = [planned(each, base, data) for each in settings]
    rows = []
    for each, plan in zip(settings, plans, strict=True):
        name = f"{each.method.name} r={each.method.rank} seed {each.seed}"
        voice.say(name)
        tags = {"factory.flow": "compare"}
        with trained(home, each, learn, choose, name=name, tags=tags, datasets=[data]) as candidate:
            after = scored(each, [test], candidate.folder)[test.name]
            size = sum(path.stat().st_size for path in candidate.folder.iterdir())
            upkeep = upkeep_of(each, candidate.folder, test)
        share = candidate.figures["trainable_parameters"] / plan.parameters
        cost = (int(candidate.figures["peak_above_start_bytes"]), candidate.figures["train_seconds"], size)
        rows.append(Row(each.method.name, each.method.rank, each.seed, share, *cost, after, upkeep))
    table = as_table(spec, rows, before)
    publish_comparison(home, spec.task, table)
    return table


def refuse_unknown(methods: list[str], ranks: list[int]) -> None:
    """
    Raises:
        SpecRefused: for each method that the catalogue lacks, and each rank that is none.
    """
    found = []
    for name in (name for name in methods if name not in METHODS):
        near = get_close_matches(name, METHODS, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"choose of {', '.join(METHODS)}"
        found.append(Problem("E-SPEC-022", "methods", f"'{name}' is not in the catalogue", remedy))
    found += [Problem("E-SPEC-014", "ranks", f"{rank} is no rank", "write 1 or more") for rank in ranks if rank < 1]
    raise_if_any(SpecRefused, found)


def refuse_impossible(settings: list[AdapterSpec]) -> None:
    """
    Raises:
        SpecRefused: for each method that cannot be trained on this base or for this kind of task, with the reason.
    """
    found = {}
    for each in settings:
        narrowed = each.method.targets != "all-linear" or each.method.layers is not None
        if why := refusal_of(each.method.name, each.base.quantization, each.kind, narrowed):
            found[each.method.name] = Problem("E-SPEC-042", f"methods: {each.method.name}", why, "leave it out")
        if each.resources.shard_base and (wants := WANT_THE_WHOLE_BASE.get(each.method.name)):
            remedy = "leave it out, or set resources.shard_base: false"
            found[each.method.name] = Problem("E-SPEC-042", f"methods: {each.method.name}", wants, remedy)
    raise_if_any(SpecRefused, found.values())


@on_gpu
def upkeep_of(spec: AdapterSpec, folder: Path, test: Slice) -> Upkeep:
    """Measured on the first test rows: the adapter attached, and merged where the method allows."""
    from tasks.evaluation.upkeep import forgetting, merged_copy, own_loss, own_texts, pass_seconds
    from tasks.methods.build import attached
    from tasks.training.base import load_base
    from tasks.training.encoding import encode

    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
    rows, texts = encode(base, test.examples[:TIMED_ROWS]), own_texts(base)
    with threads(spec.resources.threads):
        alone = pass_seconds(base, base.model, rows)
        before = own_loss(base, texts) if texts else 0.0
        with attached(base, folder) as model:
            beside = pass_seconds(base, model, rows) / alone
            forgotten = forgetting(base, model, texts, before) if texts else None
        apart = merged_copy(base, folder) if METHODS[spec.method.name].mergeable else None
        merged = pass_seconds(base, apart, rows) / alone if apart is not None else None
    return Upkeep(beside, merged, forgotten)


def setting(spec: AdapterSpec, method: str, rank: int, seed: int) -> AdapterSpec:
    """The spec with another method, rank and seed, alpha / rank as before."""
    ratio = spec.method.alpha_value / spec.method.rank
    changed = spec.method.model_dump() | {"name": method, "rank": rank, "alpha": ratio * rank}
    return spec.model_copy(update={"method": MethodSpec.model_validate(changed), "seed": seed})


def as_table(spec: AdapterSpec, rows: list[Row], before: EvaluationRecord) -> Table:
    """The comparison, the untouched base first."""
    score = (before.score, before.low, before.high, before.n)
    lines: list[tuple[object, ...]] = [
        ("untouched base", "", "", Share(0), Bytes(0), Seconds(0), Bytes(0), *score, 0.0, None, 1.0, None)
    ]
    lines += [
        (
            r.method,
            r.rank,
            r.seed,
            Share(r.trainable_share),
            Bytes(r.peak_bytes),
            Seconds(r.seconds),
            Bytes(r.bytes),
            r.scores.score,
            r.scores.low,
            r.scores.high,
            r.scores.n,
            r.upkeep.forgotten,
            METHODS[r.method].mergeable,
            r.upkeep.attached,
            r.upkeep.merged,
        )
        for r in rows
    ]
    columns: tuple[str, ...] = (
        "method",
        "rank",
        "seed",
        "trainable share",
        "peak memory",
        "seconds",
        "bytes",
        spec.metric,
        "low",
        "high",
    )
    columns += ("n", "forgotten", "mergeable", "pass attached", "pass merged")
    return Table(f"{spec.task}: methods compared", columns, tuple(lines), NOTE)
