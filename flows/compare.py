"""One task, several methods and ranks, one table: what each costs and what each gains, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from prefect import flow

from flows.learn import planned, scored, settled, slice_of, trained
from flows.progress import voice
from flows.publish import publish_comparison
from flows.report import Bytes, Seconds, Share, Table
from flows.validate import identified, validated
from flows.wiring import opened
from registry.records import EvaluationRecord
from tasks.errors import Problem, SpecRefused, raise_if_any
from tasks.methods.catalogue import METHODS
from tasks.spec_files import load_adapter_spec
from tasks.specs import AdapterSpec, MethodSpec


@dataclass(frozen=True)
class Row:
    """One setting's cost and gain."""

    method: str
    rank: int
    seed: int
    trainable_share: float
    seconds: float
    bytes: int
    scores: EvaluationRecord


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
    plans = [planned(each, base, data) for each in settings]
    rows = []
    for each, plan in zip(settings, plans, strict=True):
        name = f"{each.method.name} r={each.method.rank} seed {each.seed}"
        voice.say(name)
        tags = {"factory.flow": "compare"}
        with trained(home, each, learn, choose, name=name, tags=tags, datasets=[data]) as candidate:
            after = scored(each, [test], candidate.folder)[test.name]
            size = sum(path.stat().st_size for path in candidate.folder.iterdir())
        share = candidate.figures["trainable_parameters"] / plan.parameters
        rows.append(
            Row(each.method.name, each.method.rank, each.seed, share, candidate.figures["train_seconds"], size, after)
        )
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


def setting(spec: AdapterSpec, method: str, rank: int, seed: int) -> AdapterSpec:
    """The spec with another method, rank and seed, alpha / rank as before."""
    ratio = spec.method.alpha_value / spec.method.rank
    changed = spec.method.model_dump() | {"name": method, "rank": rank, "alpha": ratio * rank}
    return spec.model_copy(update={"method": MethodSpec.model_validate(changed), "seed": seed})


def as_table(spec: AdapterSpec, rows: list[Row], before: EvaluationRecord) -> Table:
    """The comparison, the untouched base first."""
    lines: list[tuple[object, ...]] = [
        ("untouched base", "", "", Share(0), Seconds(0), Bytes(0), before.score, before.low, before.high, before.n)
    ]
    lines += [
        (
            r.method,
            r.rank,
            r.seed,
            Share(r.trainable_share),
            Seconds(r.seconds),
            Bytes(r.bytes),
            r.scores.score,
            r.scores.low,
            r.scores.high,
            r.scores.n,
        )
        for r in rows
    ]
    columns = ("method", "rank", "seed", "trainable share", "seconds", "bytes", spec.metric, "low", "high", "n")
    return Table(f"{spec.task}: methods compared", columns, tuple(lines), "95 % intervals on the test rows")
