"""A look inside a registered adapter, and beside another one of the same base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from flows.publish import slug
from flows.report import Table
from flows.wiring import Home
from registry.records import VersionRecord
from tasks.errors import SpecRefused
from tasks.inspection import Inside, advice, inspected, similarity
from tasks.merging.vectors import exact_updates
from tasks.specs import AdapterSpec


@dataclass(frozen=True)
class Look:
    """Each module's update, what follows from it, and phi with another adapter by module where one was named.

    `figure` shows the norms by layer and by kind of module.
    """

    ref: str
    modules: tuple[Inside, ...]
    advice: tuple[str, ...]
    similarity: dict[str, float]
    figure: Path


def inside_of(home: Home, ref: str, energy: float = 0.99, against: str | None = None, out: Path | None = None) -> Look:
    """The look inside an adapter; the figure is written to `out`, or beside the reports.

    Raises:
        Unknown: there is no such version.
        SpecRefused: it is a merged model, or `against` has another base.
        ArtifactRefused: its method has no weight update.
    """
    from tasks.training.base import dense_weights, load_base

    version = adapter_of(home, ref)
    spec = AdapterSpec.model_validate(version.spec)
    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
    weights = dense_weights(base)

    def weight(name: str) -> Tensor:
        return weights[f"{name}.weight"]

    update = exact_updates(home.store.path(version.artifact), weight)
    found = inspected(update, weight)
    beside: dict[str, float] = {}
    if against:
        other = adapter_of(home, against)
        if other.base != version.base:
            wrong = f"{other.ref} was trained on another base"
            raise SpecRefused.one("E-SPEC-043", version.ref, wrong, "name two adapters of one base")
        second = exact_updates(home.store.path(other.artifact), weight)
        shared = [inside for inside in found if inside.module in second.modules]
        beside = {inside.module: similarity(update, second, inside.module) for inside in shared}
    return Look(version.ref, found, advice(found, energy), beside, drawn(home, version.ref, found, out))


def drawn(home: Home, ref: str, insides: Sequence[Inside], out: Path | None) -> Path:
    """The figure of the norms, written."""
    from tasks.figures.norms import norms

    path = out or home.settings.home / "reports" / f"norms-{slug(ref)}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    title = "Norm of the update by layer and kind of module"
    path.write_bytes(norms({inside.module: inside.norm for inside in insides}, title=title, subtitle=ref))
    return path


def look_table(look: Look, energy: float) -> Table:
    """One line per module, the largest update first."""
    columns = ["module", "norm", "effective rank", f"rank at {energy:.0%}", "amplification"]
    columns += ["phi"] if look.similarity else []
    rows = []
    for inside in sorted(look.modules, key=lambda inside: -inside.norm):
        cells = [inside.module, inside.norm, inside.effective_rank, inside.rank_at(energy), inside.amplification]
        rows.append((*cells, *([look.similarity.get(inside.module)] if look.similarity else [])))
    note = "amplification: norm of the update over that of the base in the same directions"
    return Table(f"Inside {look.ref}", tuple(columns), tuple(rows), note)


def adapter_of(home: Home, ref: str) -> VersionRecord:
    """
    Raises:
        Unknown: there is no such version.
        SpecRefused: it is a merged model.
    """
    version = home.ledger.version(ref)
    if version.kind != "adapter":
        raise SpecRefused.one("E-SPEC-043", version.ref, "is a merged model", "name one of its parents")
    return version
