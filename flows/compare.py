"""One task, several methods and ranks, one table: what each costs and what each gains, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

from prefect import flow
from pydantic import ValidationError

from flows.learn import Slice, device_memory, planned, scored, settled, slice_of, threads
from flows.policy import on_gpu
from flows.progress import voice
from flows.publish import publish_comparison
from flows.report import Bytes, Seconds, Share, Table
from flows.teach import trained
from flows.validate import identified, validated
from flows.wiring import opened
from registry.records import EvaluationRecord
from tasks.errors import Problem, SpecRefused, raise_if_any
from tasks.evaluation.comparison import Interval, interval_over_runs
from tasks.methods.catalogue import METHODS, TRAINED, refusal_of
from tasks.spec_files import load_adapter_spec
from tasks.specs import AdapterSpec, MethodSpec
from tasks.specs.adapter import WANT_THE_WHOLE_BASE

TIMED_ROWS = 32
TAGS = {"factory.flow": "compare"}
NOTE = (
    "{n} test rows, 95 % intervals; peak: memory above what was held when training began; forgotten: nats per token on"
    " text that the base writes itself (a classifier writes none); attached, merged: a forward pass over test rows, the"
    " base's own being 1."
)
OVER_SEEDS = "Of a mean: Student's interval over its seeds."


@dataclass(frozen=True)
class Upkeep:
    """What serving costs: a forward pass over the base's, and nats per token that the base forgets."""

    attached: float
    merged: float | None
    forgotten: float | None


@dataclass(frozen=True)
class Row:
    """One setting's cost and gain; `rank` is None where the method has none, `seed` of a mean says of how many."""

    method: str
    rank: int | None
    seed: int | str
    trainable_share: float
    peak_bytes: int
    seconds: float
    bytes: int
    score: Interval
    upkeep: Upkeep

    @property
    def name(self) -> str:
        """How the setting is called where only letters and digits are taken.

        >>> upkeep = Upkeep(1.2, 1.0, 0.01)
        >>> Row("lora", 4, 0, 0.01, 2**20, 3.0, 2**15, Interval(0.9, 0.8, 1.0, 50), upkeep).name
        'lora-r4-seed-0'
        """
        rank = "" if self.rank is None else f"-r{self.rank}"
        return f"{self.method}{rank}-{'seed-' if isinstance(self.seed, int) else ''}{self.seed}".replace(" ", "-")


@flow(name="compare", description="Train one task with several methods and ranks, and put the results side by side.")
def compare(
    spec_path: str,
    methods: list[str] | None = None,
    ranks: list[int] | None = None,
    seeds: int = 1,
    keep_alpha: bool = False,
) -> Table:
    """The table that chooses a method. Nothing is registered or promoted; table and runs are in MLflow.

    On a CPU each training has a process of its own, so that its peak of memory does not depend on the one before.

    Args:
        spec_path: The adapter spec, a YAML file.
        methods: Rows of the method catalogue; the spec's own by default.
        ranks: Ranks to try; the spec's own by default. A method that has no rank is trained once.
        seeds: Runs per setting.
        keep_alpha: alpha stays as in the spec; by default alpha / rank does.
    """
    home, spec = opened(), load_adapter_spec(spec_path)
    refuse_unknown(methods or [], ranks or [])
    base = identified(home, spec.base)
    data = validated(home, spec)
    spec = settled(spec, data)
    test = slice_of(spec, data)
    learn, choose = data.snapshot.examples("train"), data.snapshot.examples("validation")
    settings = settings_of(spec, methods or [], ranks or [], seeds, keep_alpha)
    refuse_impossible(settings)
    before = scored(spec, [test], None, learn)[test.name]
    plans = [planned(each, base, data).plan for each in settings]
    rows = []
    with home.tracker.run(name=f"compare {spec.task}", experiment=spec.task, tags=TAGS) as run:
        for each, plan in zip(settings, plans, strict=True):
            rank = rank_of(each.method)
            name = f"{each.method.name}{'' if rank is None else f' r={rank}'} seed {each.seed}"
            voice.say(name)
            place: dict[str, Any] = {"name": name, "tags": TAGS, "datasets": [data], "parent": run.key}
            with trained(home, each, learn, choose, apart=not device_memory(each).on_gpu, **place) as candidate:
                after = scored(each, [test], candidate.folder)[test.name]
                size = sum(path.stat().st_size for path in candidate.folder.iterdir())
                upkeep = upkeep_of(each, candidate.folder, test)
            share = candidate.figures["trainable_parameters"] / plan.parameters
            cost = (int(candidate.figures["peak_above_start_bytes"]), candidate.figures["train_seconds"], size)
            score = Interval(after.score, after.low, after.high, after.n)
            rows.append(Row(each.method.name, rank, each.seed, share, *cost, score, upkeep))
        rows = list(with_means(rows))
        table = as_table(spec, rows, before)
        publish_comparison(home, run, spec.task, table, {row.name: figures_of(row) for row in rows})
    return table


def settings_of(
    spec: AdapterSpec, methods: Sequence[str], ranks: Sequence[int], seeds: int, keep_alpha: bool
) -> list[AdapterSpec]:
    """One spec per training, in the order of the table; what has no rank is there once for all ranks."""
    return [
        setting(spec, method, rank, seed, keep_alpha)
        for method in dict.fromkeys(methods or [spec.method.name])
        for rank in (dict.fromkeys(ranks) if ranks and METHODS[method].rank_means else [spec.method.rank])
        for seed in range(spec.seed, spec.seed + seeds)
    ]


def setting(spec: AdapterSpec, method: str, rank: int, seed: int, keep_alpha: bool) -> AdapterSpec:
    """The spec with another method, rank and seed; alpha / rank as before, or alpha."""
    alpha = spec.method.alpha_value
    changed = {"name": method, "rank": rank, "alpha": alpha if keep_alpha else alpha / spec.method.rank * rank}
    method_spec = MethodSpec.model_validate(spec.method.model_dump() | changed)
    return spec.model_copy(update={"method": method_spec, "seed": seed})


def rank_of(method: MethodSpec) -> int | None:
    return method.rank if METHODS[method.name].rank_means else None


def refuse_unknown(methods: Sequence[str], ranks: Sequence[int]) -> None:
    """
    Raises:
        SpecRefused: for each method that the catalogue lacks, and each rank that is none.
    """
    found = []
    for name in (name for name in methods if name not in METHODS):
        near = get_close_matches(name, METHODS, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"choose of {', '.join(TRAINED)}"
        found.append(Problem("E-SPEC-022", "methods", f"'{name}' is not in the catalogue", remedy))
    for rank in ranks:
        try:
            MethodSpec(rank=rank)
        except ValidationError as error:
            wrong = f"{rank} is no rank: {error.errors()[0]['msg'].lower()}"
            found.append(Problem("E-SPEC-014", "ranks", wrong, "write --ranks 4,8,16"))
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
    from tasks.evaluation.upkeep import forgetting, merged_copy, own_loss, own_texts, pass_ratios
    from tasks.methods.build import attached
    from tasks.training.base import load_base
    from tasks.training.encoding import encode

    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
    rows, texts = encode(base, test.examples[:TIMED_ROWS]), own_texts(base)
    with threads(spec.resources.threads):
        apart = merged_copy(base, folder) if METHODS[spec.method.name].mergeable else None
        beside, merged = pass_ratios(base, rows, folder, apart)
        if not texts:
            return Upkeep(beside, merged, None)
        before = own_loss(base, texts)
        with attached(base, folder) as model:
            return Upkeep(beside, merged, forgetting(base, model, texts, before))


def with_means(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows, and after those of one setting with several seeds their mean."""
    for _, group in groupby(rows, key=lambda row: (row.method, row.rank)):
        alike = list(group)
        yield from alike
        if (count := len(alike)) > 1:
            attached = sum(row.upkeep.attached for row in alike) / count
            merged = mean_of([row.upkeep.merged for row in alike])
            upkeep = Upkeep(attached, merged, mean_of([row.upkeep.forgotten for row in alike]))
            yield replace(
                alike[0],
                seed=f"mean of {count}",
                peak_bytes=round(sum(row.peak_bytes for row in alike) / count),
                seconds=sum(row.seconds for row in alike) / count,
                bytes=round(sum(row.bytes for row in alike) / count),
                score=interval_over_runs([row.score.mean for row in alike]),
                upkeep=upkeep,
            )


def mean_of(values: Sequence[float | None]) -> float | None:
    """None where one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def figures_of(row: Row) -> dict[str, float]:
    """A setting's numbers, by their names in MLflow."""
    found = {
        "trainable_share": row.trainable_share,
        "peak_bytes": row.peak_bytes,
        "train_seconds": row.seconds,
        "bytes": row.bytes,
        "score": row.score.mean,
        "score_low": row.score.low,
        "score_high": row.score.high,
        "forgotten": row.upkeep.forgotten,
        "pass_attached": row.upkeep.attached,
        "pass_merged": row.upkeep.merged,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def as_table(spec: AdapterSpec, rows: Sequence[Row], before: EvaluationRecord) -> Table:
    """The comparison, the untouched base first."""
    score = (before.score, before.low, before.high)
    forgotten = None if rows[0].upkeep.forgotten is None else 0.0
    lines: list[tuple[object, ...]] = [
        ("untouched base", None, None, Share(0), None, None, None, *score, forgotten, None, 1.0, None)
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
            r.score.mean,
            r.score.low,
            r.score.high,
            r.upkeep.forgotten,
            METHODS[r.method].mergeable,
            r.upkeep.attached,
            r.upkeep.merged,
        )
        for r in rows
    ]
    columns: tuple[str, ...] = ("method", "rank", "seed", "trainable share", "peak memory", "seconds", "bytes")
    columns += (spec.metric, "low", "high", "forgotten", "mergeable", "pass attached", "pass merged")
    note = " ".join([NOTE.format(n=before.n), *([OVER_SEEDS] if any(isinstance(r.seed, str) for r in rows) else [])])
    return Table(f"{spec.task}: methods compared", columns, tuple(lines), note)
