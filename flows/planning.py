"""A memory plan for people: the spec's own, the same task trained in other ways, and a spec made to fit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flows.calibration import correction_of
from flows.learn import device_memory, plan_run
from flows.report import Bytes, Table
from flows.validate import base_folder
from flows.wiring import opened
from registry.durable import replace_file
from tasks.errors import SpecRefused
from tasks.memory import MemoryPlan
from tasks.planning import Planner, fitted, rewritten, shapes_of, variants
from tasks.spec_files import load_adapter_spec
from tasks.specs import AdapterSpec
from tasks.training.recipe import facts_of, with_choices


def planner(spec: AdapterSpec, room_bytes: int | None) -> Planner:
    """Plans for this machine, as its earlier runs correct them, or for a GPU of so many bytes; a local folder needs no
    more than its config."""
    folder = Path(spec.base.model) if spec.base.is_folder else base_folder(spec.base)
    if room_bytes is not None:
        return partial(plan_run, folder=folder, available_bytes=room_bytes)
    shapes = shapes_of(folder)
    architecture = str((shapes.config.get("architectures") or [""])[0])
    known = correction_of(opened(), architecture, shapes.parameters, device_memory(spec).card_bytes)
    return partial(plan_run, folder=folder, correction=known)


def filled(spec: AdapterSpec) -> AdapterSpec:
    """The spec with what was left `auto` chosen, and `chosen` saying why; from the rows that its source has.

    Raises:
        DataRefused: the source cannot be read.
    """
    if not spec.auto:
        return spec
    from tasks.data.reading import read_rows

    split = spec.data.split
    learned = round(len(read_rows(spec.data).records) * (1 - split.validation - split.test))
    folder = Path(spec.base.model) if spec.base.is_folder else base_folder(spec.base)
    return with_choices(spec, facts_of(shapes_of(folder), learned))


def side_by_side(spec: AdapterSpec, room_bytes: int | None = None) -> tuple[MemoryPlan, Table]:
    """The spec's own plan, and full fine-tuning, LoRA and QLoRA of the same task beside one another."""
    plan = planner(spec, room_bytes)
    own, others = plan(spec), variants(spec, plan)
    causes = list(dict.fromkeys(cause for other in others for cause in other.plan.causes))
    rows: list[tuple[object, ...]] = [
        (cause, *(Bytes(other.plan.causes.get(cause, 0)) for other in others)) for cause in causes
    ]
    rows.append(("peak", *(Bytes(other.plan.peak_bytes) for other in others)))
    rows.append(("activations without checkpointing", *(Bytes(other.activations_kept) for other in others)))
    rows.append(("activations with checkpointing", *(Bytes(other.activations_again) for other in others)))
    rows.append(("largest batch at once", *(other.largest_batch for other in others)))
    note = f"rows of {own.tokens} tokens; {Bytes(own.available_bytes) / 2**30:.1f} GiB are there"
    return own, Table("Trained in other ways", ("cause", *(other.name for other in others)), tuple(rows), note)


def made_to_fit(path: str, room_bytes: int | None = None) -> Mapping[str, Any]:
    """Rewrite a spec file with the fewest changes that make it fit; the same effective batch. What was changed.

    Raises:
        SpecRefused: nothing that the spec may change is enough; the file is as it was.
    """
    spec = load_adapter_spec(path)
    try:
        changes = fitted(spec, planner(spec, room_bytes))
    except LookupError:
        wrong = "does not fit, whatever is changed"
        raise SpecRefused.one("E-SPEC-013", f"{path}:resources", wrong, "use a smaller base") from None
    if changes:
        replace_file(Path(path), rewritten(Path(path), changes).encode())
    return changes
