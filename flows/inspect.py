"""A look inside a registered adapter, and beside another one of the same base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.places import write_out
from flows.publish import slug
from flows.report import Share, Table
from flows.wiring import Home
from registry.records import VersionRecord
from tasks.errors import SpecRefused
from tasks.inspection import Inside, advice, inspected, moved, similarities, similarity
from tasks.merging.base import BaseWeights, held_weights
from tasks.merging.vectors import Update, exact_updates
from tasks.specs import AdapterSpec


@dataclass(frozen=True)
class Look:
    """Each module's update, what follows from it, and phi with another adapter where one was named.

    Attributes:
        similarity: phi of all directions by module.
        phi: (i, j), the first i directions here and j there, mean over the modules; empty without another adapter.
        against: the other adapter.
        figure: norms, spectra, energy and phi; None where the adapter has but norms or biases.
    """

    ref: str
    modules: tuple[Inside, ...]
    advice: tuple[str, ...]
    similarity: dict[str, float]
    phi: tuple[tuple[float, ...], ...]
    against: str | None
    figure: Path | None


def inside_of(home: Home, ref: str, energy: float = 0.99, against: str | None = None, out: Path | None = None) -> Look:
    """The look inside an adapter; the figure is written to `out`, or beside the reports.

    Raises:
        Unknown: there is no such version.
        SpecRefused: it is a merged model, or `against` has another base or adapts nothing that this one does.
        ArtifactRefused: its method has no weight update.
    """
    version = adapter_of(home, ref)
    spec = AdapterSpec.model_validate(version.spec)
    other = adapter_of(home, against) if against else None
    if other and other.base != version.base:
        wrong = f"{other.ref} was trained on another base"
        raise SpecRefused.one("E-SPEC-043", version.ref, wrong, "name two adapters of one base")
    weights = weights_of(spec)
    update = update_of(home, version, weights)
    found = inspected(update, weights.weight)
    if not found:
        return Look(
            version.ref, (), (in_one_line(spec.method.name, moved(update, weights.weight)),), {}, (), None, None
        )
    beside: dict[str, float] = {}
    phi: tuple[tuple[float, ...], ...] = ()
    if other:
        second = update_of(home, other, weights)
        shared = [i.module for i in found if i.module in second.modules and i.module not in second.vectors]
        if not shared:
            wrong = f"{other.ref} changes no module that this one does"
            raise SpecRefused.one("E-SPEC-043", version.ref, wrong, "name two adapters of the same modules")
        beside = {name: similarity(update, second, name) for name in shared}
        phi = tuple(tuple(row) for row in similarities(update, second, shared).tolist())
    told = advice(found, energy, spec.method.name)
    figure = drawn(home, version.ref, found, phi, other.ref if other else "", out)
    return Look(version.ref, found, told, beside, phi, other.ref if other else None, figure)


def weights_of(spec: AdapterSpec) -> BaseWeights:
    """The base as the adapter saw it."""
    from tasks.training.base import dense_weights, load_base

    base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
    return held_weights(Path(spec.base.model), dense_weights(base))


def update_of(home: Home, version: VersionRecord, weights: BaseWeights) -> Update:
    return exact_updates(home.ledger.files(version.ref), weights.weight, weights.shape)


def in_one_line(method: str, shares: dict[str, float]) -> str:
    """All that there is to say of new values of norms or biases.

    >>> in_one_line("layernorm", {"a": 0.01, "b": 0.03})
    'layernorm gave 2 norms or biases new values, which have no rank: moved by 2.0% of their length, b most (3.0%)'
    """
    most = max(shares, key=lambda name: shares[name])
    middle = sum(shares.values()) / len(shares)
    return (
        f"{method} gave {len(shares)} norms or biases new values, which have no rank: moved by {middle:.1%} of their"
        f" length, {most} most ({shares[most]:.1%})"
    )


def drawn(
    home: Home, ref: str, insides: Sequence[Inside], phi: Sequence[Sequence[float]], other: str, out: Path | None
) -> Path:
    """The figure, written."""
    from tasks.figures.inside import inside

    path = out or home.settings.home / "reports" / f"inside-{slug(ref)}.svg"
    spectra = {one.module: one.values for one in insides}
    write_out(path, inside(spectra, phi=phi, other=other, title="The update by module", subtitle=ref))
    return path


def some_of(count: int) -> list[int]:
    """Ranks to show: powers of two, and the last.

    >>> some_of(12), some_of(1)
    ([1, 2, 4, 8, 12], [1])
    """
    return sorted({2**i for i in range(count.bit_length()) if 2**i <= count} | {count})


def look_table(look: Look, energy: float) -> Table:
    """One line per module, the largest update first: what the first directions hold of it, and phi."""
    most = max(len(inside.values) for inside in look.modules)
    ranks = [rank for rank in some_of(most) if rank < most][:6]
    columns = ["module", "norm", "effective rank", f"rank at {100 * energy:g}%", "amplification"]
    columns += [f"energy r={rank}" for rank in ranks] + (["phi"] if look.similarity else [])
    rows = []
    for inside in sorted(look.modules, key=lambda inside: -inside.norm):
        cells = [inside.module, inside.norm, inside.effective_rank, inside.rank_at(energy), inside.amplification]
        kept = [Share(inside.energy_at(rank)) for rank in ranks]
        rows.append((*cells, *kept, *([look.similarity.get(inside.module)] if look.similarity else [])))
    note = (
        "amplification: norm of the update over that of the base in the same directions; energy r=k: share of the"
        " squared norm that the k strongest directions hold"
    )
    return Table(f"Inside {look.ref}", tuple(columns), tuple(rows), note)


def phi_table(look: Look) -> Table:
    """phi(i, j) for some i down and j across."""
    down, across = some_of(len(look.phi)), some_of(len(look.phi[0]))
    rows = tuple((f"i = {i}", *(look.phi[i - 1][j - 1] for j in across)) for i in down)
    note = (
        f"of the first i input directions of {look.ref} so much lies in the first j of {look.against}; mean of modules"
    )
    return Table("phi(i, j)", ("", *(f"j = {j}" for j in across)), rows, note)


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
