"""How an adapter is trained: over which base, by which method, on what machine.

Defaults are the field's current practice: LoRA of rank 16 with alpha 2r on all linear layers (Hu et al. 2021,
arXiv:2106.09685; Dettmers et al. 2023, arXiv:2305.14314, section 4: "all linear layers" is what closes the gap to full
fine-tuning) over an NF4 base with double quantisation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.methods.catalogue import METHODS
from tasks.specs.common import AUTO, Share, Spec


class BaseSpec(Spec):
    """The pretrained model that all adapters of a task family share."""

    model: str = Field(description="Folder of a transformers model (relative to the spec), or a hub id.")
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="Full commit hash; required for a hub id, refused for a folder."
    )
    quantization: Literal["nf4", "none"] = Field(
        "nf4", description="Precision of the frozen weights: 4-bit NormalFloat, or as stored."
    )
    double_quant: bool = Field(True, description="Quantise the NF4 scales too (0.37 bit per weight less).")
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Type of the matrix products; auto takes bfloat16 where the device makes it faster."
    )

    @property
    def is_folder(self) -> bool:
        return Path(self.model).is_absolute()


def _or_auto(schema: dict[str, Any]) -> None:
    """The JSON schema of a field that a file may leave to the recipe with the word auto."""
    own = {key: schema.pop(key) for key in list(schema) if key not in ("title", "default", "description")}
    schema["anyOf"] = [*own.pop("anyOf", [own]), {"const": AUTO}]


class MethodSpec(Spec):
    """How the weights may change."""

    name: str = Field("lora", description="Row of the method catalogue: " + ", ".join(METHODS) + ".")
    rank: int = Field(16, ge=1, le=4096, description="Rank r of the update.", json_schema_extra=_or_auto)
    alpha: float | None = Field(None, gt=0, description="Scale numerator; default 2 * rank.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on the adapter's input.", json_schema_extra=_or_auto)
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Module names that get an adapter; all linear layers but the head by default.",
        json_schema_extra=_or_auto,
    )
    layers: tuple[int, ...] | None = Field(None, description="Only these transformer layers; all by default.")

    @field_validator("name")
    @classmethod
    def _method_is_known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"'{name}' is not a method; the catalogue has {', '.join(METHODS)}")
        return name

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_are_names(cls, targets: Any) -> Any:
        names = isinstance(targets, list | tuple) and targets and all(isinstance(name, str) for name in targets)
        if targets != "all-linear" and not names:
            raise ValueError("targets is all-linear, or a list of at least one module name such as [q_proj, v_proj]")
        return targets if targets == "all-linear" else tuple(targets)

    @field_validator("layers")
    @classmethod
    def _layers_are_some(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers == ():
            raise ValueError("layers lists at least one layer number, or is left out for all")
        return layers

    @property
    def alpha_value(self) -> float:
        return self.alpha if self.alpha is not None else 2.0 * self.rank


class TrainingSpec(Spec):
    """The optimisation of one adapter."""

    epochs: float = Field(
        3.0,
        gt=0,
        le=1000,
        description="Passes over the training rows; ignored when `steps` is given.",
        json_schema_extra=_or_auto,
    )
    steps: int | None = Field(None, ge=1, description="Optimiser steps, instead of epochs.")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak rate.", json_schema_extra=_or_auto)
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Shape of the rate after the warm-up."
    )
    warmup: Share = Field(0.05, description="Share of the steps in which the rate rises.")
    batch_size: int = Field(16, ge=1, le=65536, description="Examples per optimiser step.")
    micro_batch: int | None = Field(
        None, ge=1, description="Examples held in memory at once; default: the whole batch."
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="Decoupled weight decay on the adapter.", json_schema_extra=_or_auto
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    head_rate: float = Field(10.0, gt=0, description="classification: rate of the fresh head over the adapter's rate.")
    optimizer: Literal["auto", "adamw", "paged_adamw_8bit"] = Field(
        "auto", description="auto: paged 8-bit AdamW on a GPU, AdamW on a CPU."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations: memory of one layer instead of all, for about one more forward pass."
    )
    validations: int = Field(8, ge=1, le=1000, description="How often the validation loss is read during training.")
    checkpoint_minutes: float = Field(
        5.0, ge=0, description="Time between checkpoints, from which an interrupted run goes on; 0: after every step."
    )


class RepairSpec(Spec):
    """What may be tried where the curve of a run names a fault: one change at a time, the best run is kept."""

    attempts: int = Field(0, ge=0, le=10, description="Further runs, each with one bounded change; 0: none.")
    budget_minutes: float = Field(
        60.0,
        gt=0,
        description="Time of all attempts together, a retrain's candidates too; none starts that would exceed it.",
    )


class ResourceSpec(Spec):
    """What the run may take."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes the GPU where there is one.")
    memory_gib: float | None = Field(
        None, gt=0, le=2**30, description="Memory that the plan must fit; default: what the device has free."
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes of a node that share every batch (torchrun); one GPU each where there are GPUs.",
    )
    nodes: int = Field(
        1, ge=1, le=64, description="Machines that share every batch; the run waits for those that are to join it."
    )
    meet_at: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]+:[0-9]{2,5}$",
        description="host:port of the first node as the others reach it; default: its name and port 29400.",
    )
    shard_base: bool = Field(
        False, description="Each process keeps its share of the base; blocks are whole one at a time, while computing."
    )
    together: Literal["auto", "never"] = Field(
        "auto",
        description="fleet: adapters of one base share passes over it where that is measured to be faster; "
        "never: each by itself, to the same bytes at any time.",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; default: all that the process may use.")

    @model_validator(mode="after")
    def _a_share_is_of_several(self) -> Self:
        if self.shard_base and self.team_size == 1:
            raise ValueError("shard_base shares the base among processes; set processes to 2 or more")
        if self.meet_at and self.nodes == 1:
            raise ValueError("meet_at is where nodes meet; set nodes to 2 or more")
        return self

    @property
    def team_size(self) -> int:
        """Processes that share every batch, over all nodes."""
        return self.processes * self.nodes
