"""The PEFT methods that the factory trains, one row each; torch-free, so that a spec is refused before anything loads.

Adding a method is adding a row. `update` says how its exact weight update is written, which is what merging needs.
`docs/methods.md` is written from this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Shapes = Mapping[str, tuple[int, int]]  # (out, in) of each adapted linear module
EXTRA = "own"  # family of the methods that PEFT does not carry, see tasks.methods.own


@dataclass(frozen=True)
class Method:
    """A row: how it is built, what it trains, and what it can and cannot do.

    Attributes:
        family: PEFT's type, or `own`.
        update: the exact weight update, or "" where there is none to add.
        parameters: trainable parameters from (shapes of the adapted modules, rank), and `formula` in words.
        rank_means: what `method.rank` stands for; "" where the method has no such number.
        rank_while_training: rows of A that a run of this `method.rank` holds.
        scale_exponent: p in s = alpha / r**p, for the LoRA family.
        not_on_nf4: why it cannot train on a 4-bit base; "" if it can.
        not_for_classes: why it cannot serve a classification head; "" if it can.
        refused: why no spec with this row is taken at all; "" for all that train.
        starts_as_base: whether the untrained adapter answers exactly as the base does.
        reads_rows_first: whether its start is chosen from training rows.
        mergeable: whether it can be merged into the weights, so that serving costs nothing.
        config: arguments of PEFT's config class.
    """

    name: str
    title: str
    paper: str
    update: str = ""
    family: str = "LORA"
    formula: str = "r (d_in + d_out) per module"
    parameters: Callable[[Shapes, int], int] = lambda shapes, rank: sum(rank * (o + i) for o, i in shapes.values())
    rank_means: str = "rank of the update"
    rank_while_training: Callable[[int], int] = lambda rank: rank
    scale_exponent: float = 1.0
    not_on_nf4: str = ""
    not_for_classes: str = ""
    refused: str = ""
    takes_targets: bool = True
    starts_as_base: bool = True
    mergeable: bool = True
    b_rate: float = 1.0
    reads_rows_first: bool = False
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def works_on_nf4(self) -> bool:
        return not self.not_on_nf4

    @property
    def is_low_rank(self) -> bool:
        return self.family in ("LORA", "ADALORA")

    @property
    def reads(self) -> frozenset[str]:
        """The fields of a spec's `method` that change what is trained; the others are passed over."""
        ranked = {"rank"} if self.rank_means else set()
        scaled = {"alpha"} if self.is_low_rank else set()
        dropped = {"dropout"} if self.is_low_rank or self.family == "VERA" else set()
        return frozenset(
            {"name"} | ranked | scaled | dropped | ({"targets", "layers"} if self.takes_targets else set())
        )


def _half_more(rank: int) -> int:
    return -(-3 * rank // 2)


def _fixed(**config: Any) -> Mapping[str, Any]:
    return MappingProxyType(config)


VIRTUAL = "virtual tokens stand before the text, and a head that reads one position would read another"
BASE_REWRITTEN = "it rewrites the base's own weights, and this base is shared by all adapters"
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        row.name: row
        for row in (
            Method(
                name="lora",
                title="low-rank adaptation (QLoRA when the base is NF4)",
                paper="Hu et al. 2021, arXiv:2106.09685; Dettmers et al. 2023, arXiv:2305.14314",
                update="dW = (alpha / r) B A",
            ),
            Method(
                name="rslora",
                title="rank-stabilised LoRA: the scale falls with the root of r, so large ranks still learn",
                paper="Kalajdzievski 2023, arXiv:2312.03732",
                update="dW = (alpha / sqrt(r)) B A",
                scale_exponent=0.5,
                config=_fixed(use_rslora=True),
            ),
            Method(
                name="dora",
                title="weight-decomposed LoRA (QDoRA when the base is NF4): direction and magnitude learned apart",
                paper="Liu et al. 2024, arXiv:2402.09353",
                update="dW = m (W + s B A) / ||W + s B A||_row - W",
                formula="r (d_in + d_out) + d_out per module",
                parameters=lambda shapes, rank: sum(rank * (o + i) + o for o, i in shapes.values()),
                config=_fixed(use_dora=True),
            ),
            Method(
                name="loraplus",
                title="LoRA+: B learns sixteen times as fast as A",
                paper="Hayou et al. 2024, arXiv:2402.12354",
                update="dW = (alpha / r) B A",
                b_rate=16.0,
            ),
            Method(
                name="shared-a",
                title="LoRA-FA, one seeded, frozen A for all adapters of a base: merging their B is exact at rank r",
                paper="Zhang et al. 2023, arXiv:2308.03303",
                update="dW = (alpha / r) B A",
                formula="r d_out per module",
                parameters=lambda shapes, rank: sum(rank * o for o, _ in shapes.values()),
            ),
            Method(
                name="eva",
                title="LoRA whose A starts at the directions in which its inputs vary most, as training rows show them",
                paper="Paischer et al. 2024, arXiv:2410.07170",
                update="dW = (alpha / r) B A",
                reads_rows_first=True,
            ),
            Method(
                name="adalora",
                title="singular values that are dropped while it trains: modules end with ranks of their own, as plain "
                "LoRA",
                paper="Zhang et al. 2023, arXiv:2303.10512",
                update="dW = (alpha / r0) B diag(E) A",
                family="ADALORA",
                formula="r0 (d_in + d_out + 1) per module, r0 = ceil(3 r / 2)",
                parameters=lambda shapes, rank: sum(_half_more(rank) * (o + i + 1) for o, i in shapes.values()),
                rank_means="mean rank of the modules at the end; each starts with r0",
                rank_while_training=_half_more,
            ),
            Method(
                name="vera",
                title="one frozen random pair for all layers; two vectors per module are learned",
                paper="Kopiczko et al. 2023, arXiv:2310.11454",
                update="dW = diag(b) B diag(d) A",
                family="VERA",
                formula="r + d_out per module",
                parameters=lambda shapes, rank: sum(rank + o for o, _ in shapes.values()),
                rank_means="rows of the shared random pair; 256 is usual",
                config=_fixed(projection_prng_key=0, save_projection=True),
            ),
            Method(
                name="ia3",
                title="a learned factor per output channel of every adapted module",
                paper="Liu et al. 2022, arXiv:2205.05638",
                update="dW = (l - 1) W, row by row",
                family="IA3",
                formula="d_out per module",
                parameters=lambda shapes, rank: sum(o for o, _ in shapes.values()),
                rank_means="",
                config=_fixed(feedforward_modules=[]),
            ),
            Method(
                name="bottleneck",
                title="a small network in series behind each adapted module, d_out to r and back",
                paper="Houlsby et al. 2019, arXiv:1902.00751",
                family=EXTRA,
                formula="2 r d_out + r + d_out per module",
                parameters=lambda shapes, rank: sum(2 * rank * o + rank + o for o, _ in shapes.values()),
                rank_means="width of the bottleneck",
                mergeable=False,
            ),
            Method(
                name="layernorm",
                title="the norms' own gains (and offsets) are trained, nothing else",
                paper="Zhao et al. 2023, arXiv:2312.11420",
                update="the new values of the norms",
                family=EXTRA,
                formula="every parameter of a norm",
                rank_means="",
                takes_targets=False,
            ),
            Method(
                name="bitfit",
                title="the biases are trained, nothing else",
                paper="Ben Zaken et al. 2021, arXiv:2106.10199",
                update="the new values of the biases",
                family=EXTRA,
                formula="every bias",
                rank_means="",
                takes_targets=False,
            ),
            Method(
                name="full",
                title="every weight is trained: the yardstick, not an adapter",
                paper="",
                update="the new weights",
                family=EXTRA,
                formula="every parameter",
                rank_means="",
                takes_targets=False,
                not_on_nf4="4-bit weights have no gradient; set base.quantization: none",
            ),
            Method(
                name="prefix",
                title="keys and values of virtual tokens are learned in every layer",
                paper="Li and Liang 2021, arXiv:2101.00190",
                family="PREFIX_TUNING",
                formula="2 layers r d_keys",
                rank_means="virtual tokens",
                not_for_classes=VIRTUAL,
                takes_targets=False,
                starts_as_base=False,
                mergeable=False,
            ),
            Method(
                name="prompt",
                title="embeddings of virtual tokens before the text are learned",
                paper="Lester et al. 2021, arXiv:2104.08691",
                family="PROMPT_TUNING",
                formula="r d",
                rank_means="virtual tokens",
                not_for_classes=VIRTUAL,
                takes_targets=False,
                starts_as_base=False,
                mergeable=False,
            ),
            Method(
                name="ptuning",
                title="virtual tokens written by a small network, which serving does without",
                paper="Liu et al. 2021, arXiv:2103.10385",
                family="P_TUNING",
                formula="r d + 3 (d d + d)",
                rank_means="virtual tokens",
                not_for_classes=VIRTUAL,
                takes_targets=False,
                starts_as_base=False,
                mergeable=False,
            ),
            Method(
                name="corda",
                title="LoRA that starts at directions of the base that training rows single out",
                paper="Yang et al. 2024, arXiv:2406.05223",
                refused=BASE_REWRITTEN + "; eva starts from rows and leaves it as it is",
            ),
            Method(
                name="pissa",
                title="LoRA that starts at the base's own principal directions",
                paper="Meng et al. 2024, arXiv:2404.02948",
                refused=BASE_REWRITTEN,
            ),
            Method(
                name="loftq",
                title="LoRA that starts at the error of quantisation",
                paper="Li et al. 2023, arXiv:2310.08659",
                refused=BASE_REWRITTEN + "; PEFT's own needs CUDA besides",
            ),
        )
    }
)
TRAINED = tuple(name for name, row in METHODS.items() if not row.refused)
LORA_METHODS: Mapping[str, Method] = MappingProxyType(
    {name: METHODS[name] for name in TRAINED if METHODS[name].family == "LORA"}
)


def trainable_parameters(shapes: Shapes, rank: int, method: str = "lora") -> int:
    """Trainable parameters of an adapter over linear modules of the given (out, in) shapes, head excluded.

    r (d_in + d_out) per module; DoRA adds its magnitude, d_out per module. Methods that train other things than modules
    (norms, biases, virtual tokens, everything) are counted by `memory.trainable_of`, which knows the whole base.

    >>> trainable_parameters({f"{layer}.{p}": (4096, 4096) for layer in range(32) for p in "qkvo"}, rank=16)
    16777216
    """
    return METHODS[method].parameters(shapes, rank)


def refusal_of(name: str, quantization: str, kind: str, takes_targets: bool) -> str:
    """Why a spec with this method cannot work, or "".

    >>> refusal_of("full", "nf4", "generation", False)
    '4-bit weights have no gradient; set base.quantization: none'
    """
    row = METHODS[name]
    if row.refused:
        return row.refused
    if quantization == "nf4" and row.not_on_nf4:
        return row.not_on_nf4
    if kind == "classification" and row.not_for_classes:
        return row.not_for_classes
    if takes_targets and not row.takes_targets:
        return "it has no targets and no layers to choose"
    return ""
