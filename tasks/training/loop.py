"""The training loop: one adapter on a borrowed base.

Flat on purpose. Padding is hardly computed (rows of one length share a batch), the output layer runs on the learned
positions alone, and the loss of a batch is the mean over its learned tokens however it is cut into micro-batches. A run
that was stopped or killed goes on from its newest checkpoint and, on a CPU, ends with the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.data.examples import Example
from tasks.errors import SpecRefused
from tasks.methods.allocation import Allocation, is_allocated
from tasks.methods.build import attached, fresh_adapter, train_only_what_it_says, write_adapter
from tasks.methods.catalogue import METHODS
from tasks.methods.principal import start_at_principal_inputs
from tasks.specs import AdapterSpec, TrainingSpec
from tasks.training.anchor import Anchor
from tasks.training.base import Base, seeded
from tasks.training.checkpoint import Checkpoints
from tasks.training.curve import Curve, Look, Step, blind_loss
from tasks.training.encoding import IGNORED, Encoded, collate, encode, length_grouped
from tasks.training.head import start_head_from_class_means
from tasks.training.interruption import Stopped
from tasks.training.losses import EVALUATION_BATCH, answer_logits_of, validation_sums
from tasks.training.lowrank import compute_in_few_passes
from tasks.training.optimiser import optimizer_of, rate_factor
from tasks.training.part import Cramped, Halted, Part, Run, driven, gradients
from tasks.training.peak import Peak, handing_back
from tasks.training.state import RunState, trained_tensors
from tasks.training.team import Team

PROBED_ROWS = 8
READ_FIRST = 4  # batches from which a method that reads rows first chooses its start


@dataclass(frozen=True)
class Trained:
    """A finished run. `folder` holds the PEFT adapter with the lowest validation loss.

    `change` is the largest difference between the answers (logits) after and before training, on a few rows; 0 means
    that nothing was learned at all. What is `resumed` has been in other hands before: its peak is that of the rest.
    """

    folder: Path
    curve: Curve
    trainable_parameters: int
    seconds: float
    tokens_per_second: float
    padding_share: float
    peak_bytes: int
    peak_above_start_bytes: int
    peak_is_whole: bool
    compute: str
    change: float
    resumed: bool
    micro_batch: int | None
    longest_tokens: int
    longest_answer: int


@dataclass(frozen=True)
class Progress:
    """Where a run is: shown to people while it runs."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


def steps_of(
    base: Base,
    spec: AdapterSpec,
    train: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    *,
    start: Path | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] = lambda step: None,
    on_look: Callable[[Look], None] = lambda look: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda sentence: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Run[Trained]:
    """Train one adapter and write the best one, by validation loss, to a folder; `train_adapter` does it all at once.

    Stops early when the loss is no longer a number; the curve then ends there. Where memory does not suffice the rows
    held at once are halved, and the batch stays what it is.

    Args:
        start: an adapter folder to continue from, at the rate that the spec states for it; a fresh adapter otherwise.
        checkpoints: where to go on from, and where to write every `training.checkpoint_minutes`.
        stop: asked between micro-batches; True ends the run with a checkpoint.

    Raises:
        SpecRefused: the method does not fit the base, or a single row needs more memory than there is.
        ArtifactRefused: `start` does not fit the base, or the checkpoints are another run's.
        Stopped: `stop` said so.
        Cramped: this process of several that share the base lacks memory; they begin again with fewer rows at once.
    """
    rows, held_out, team = encode(base, train), encode(base, validation), Team.of_this_process()
    if not team.leads:  # one process speaks and writes for all
        on_step = on_look = on_progress = say = lambda told: None  # type: ignore[assignment]
    batches = _batches(spec, rows)
    lent = attached(base, start, trainable=True) if start else fresh_adapter(base, spec.method, spec.seed)
    began, memory = clock(), Peak.begun(base.device)
    with handing_back(base.device), lent as model, seeded(base.device, spec.seed), _recomputing(model, spec.training):
        train_only_what_it_says(model, spec.method)
        if base.kind == "classification" and start is None:
            start_head_from_class_means(base, model, rows)
        if METHODS[spec.method.name].reads_rows_first and start is None:
            start_at_principal_inputs(model, _readings(base, model, rows, spec.training.batch_size))
        compute_in_few_passes(model)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rate = spec.training.learning_rate * (spec.retrain.rate_factor if start else 1.0)
        optimizer = optimizer_of(model, spec.training, base, rate, METHODS[spec.method.name].b_rate)
        rates = [group["lr"] for group in optimizer.param_groups]
        allocation = Allocation(model, len(batches)) if is_allocated(model) else None
        kept_from = allocation.settled_from if allocation else 0
        anchor = Anchor(optimizer, spec.retrain.pull) if start and spec.retrain.pull else None
        answer = answer_logits_of(base, model, rows[:2])
        look_at = {round((i + 1) * len(batches) / spec.training.validations) for i in range(spec.training.validations)}

        def reading(state: RunState) -> tuple[float, float]:
            at_once = min(EVALUATION_BATCH, state.micro_batch or spec.training.batch_size)
            seen = validation_sums(base, model, answer, held_out, at_once, team)
            loss, right, count = team.summed(*seen)
            return loss / max(count, 1), right / max(count, 1)

        saved = checkpoints.newest() if checkpoints and team.leads else None
        team.wait()
        saved = checkpoints.newest() if checkpoints and not team.leads else saved
        for torn in checkpoints.torn if checkpoints else ():
            say(f"  {torn}: set aside")
        if saved is None:
            state = RunState(micro_batch=spec.training.micro_batch)
            state.probe = _answers(base, model, answer, rows[:PROBED_ROWS])
            state.start_loss = reading(state)[0] if held_out else None
            state.note_chance(base.device)
        else:
            state = RunState.unpacked(saved, model, optimizer, allocation)
            state.micro_batch = min(filter(None, (state.micro_batch, spec.training.micro_batch)), default=None)
            say(f"  resumed from step {state.step} of {len(batches)} (verified)")
        began -= state.seconds
        written_at = clock()

        def write() -> None:
            nonlocal written_at
            if checkpoints and team.leads:
                checkpoints.save(state.step, *state.packed(model, optimizer, allocation))
            written_at = clock()

        def look() -> None:
            """Read the validation loss where it is due; after a resume also where the run was stopped before it."""
            if state.step not in look_at or not held_out or any(seen.step == state.step for seen in state.looks):
                return
            seen = Look(state.step, *reading(state))
            state.looks.append(seen)
            on_look(seen)
            if seen.loss < state.lowest and seen.step >= kept_from:
                state.lowest = seen.loss
                state.best = {n: p.detach().to("cpu", copy=True) for n, p in trained_tensors(model)}

        look()
        while state.step < len(batches) and not _ended(state):
            number = state.step + 1
            factor = rate_factor(number, len(batches), spec.training)
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * factor
            model.train()
            state.restore_chance(base.device)
            team.draw_apart(spec.seed, number)
            batch = [rows[i] for i in batches[number - 1]]
            while not team.any(stop()):
                halted = cramped = False
                try:
                    halt = stop if team.size == 1 else lambda: False  # a team stops together, between steps
                    whole = Part.of(base, model, answer, batch, state, len(batches) - state.step)
                    loss, seen, width = yield from gradients(whole, state.micro_batch, halt, team)
                except Halted:
                    halted = True
                except Exception as error:
                    if not _is_out_of_memory(error):
                        raise
                    if spec.resources.shard_base:
                        raise Cramped(number, _half(state.micro_batch, batch, spec)) from error
                    cramped = True
                if team.any(cramped):
                    state.micro_batch = _half(state.micro_batch, batch, spec)
                    say(f"  out of memory at step {number}: {state.micro_batch} rows at once from here, same batch")
                elif not halted:
                    break
                optimizer.zero_grad(set_to_none=True)
                state.restore_chance(base.device)
                team.draw_apart(spec.seed, number)
            else:
                optimizer.zero_grad(set_to_none=True)
                write()
                raise _stopped(spec.task, state.step, len(batches), checkpoints is not None)
            team.add_up_gradients(trainable)
            if allocation:
                allocation.add_orthogonality()
            loss, width = team.summed(loss, width)
            norm = float(nn.utils.clip_grad_norm_(trainable, spec.training.max_grad_norm))
            state.seconds = clock() - began
            record = Step(number, loss, rates[0] * factor, norm, seen, state.seconds)
            if math.isfinite(loss) and math.isfinite(norm):
                optimizer.step()
                if anchor:
                    anchor.draw_back()
                if allocation:
                    allocation.after(number)
            optimizer.zero_grad(set_to_none=True)
            state.note_chance(base.device)
            state.step, state.tokens, state.padded = number, state.tokens + seen, state.padded + round(width)
            state.steps.append(record)
            on_step(record)
            if _ended(state):
                write()
                break
            left = state.seconds / number * (len(batches) - number)
            speed = state.tokens / max(state.seconds, 1e-9)
            on_progress(Progress(number, len(batches), loss, speed, left))
            look()
            if team.any(clock() - written_at >= 60 * spec.training.checkpoint_minutes) or number == len(batches):
                write()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in state.best:
                    parameter.copy_(state.best[name])
        moved = _answers(base, model, answer, rows[:PROBED_ROWS]) - state.probe  # type: ignore[operator]
        change = float(moved.abs().max()) if moved.numel() else 0.0
        if team.leads:
            write_adapter(model, folder, Path(spec.base.model).name if spec.base.is_folder else spec.base.model)
        count = sum(parameter.numel() for parameter in trainable)
    seconds = clock() - began
    return Trained(
        folder=folder,
        curve=Curve(
            tuple(state.steps),
            tuple(state.looks),
            len(batches),
            state.start_loss,
            kept_from,
            blind_loss(row.target for row in rows),
        ),
        trainable_parameters=count,
        seconds=seconds,
        tokens_per_second=state.tokens / max(seconds, 1e-9),
        padding_share=1 - state.tokens / max(state.padded, 1),
        peak_above_start_bytes=memory.above_start_bytes(),
        peak_is_whole=memory.is_whole and saved is None,
        peak_bytes=memory.start_bytes + memory.above_start_bytes(),
        compute="; ".join(filter(None, (base.compute_reason, state.together_reason))),
        change=change,
        resumed=saved is not None,
        micro_batch=state.micro_batch,
        longest_tokens=max(len(row.prompt) if base.kind == "classification" else row.length for row in rows),
        longest_answer=max(len(row.target) for row in rows),
    )


train_adapter = driven(steps_of)


def _readings(base: Base, model: Any, rows: Sequence[Encoded], batch_size: int) -> Iterator[Callable[[], Any]]:
    """A few batches to look at, as calls of the model."""
    for start in range(0, min(len(rows), READ_FIRST * batch_size), batch_size):
        yield partial(model, **collate(base, rows[start : start + batch_size])[0])


def _ended(state: RunState) -> bool:
    """Whether the loss or the gradient is no longer a number."""
    return bool(state.steps) and not (math.isfinite(state.steps[-1].loss) and math.isfinite(state.steps[-1].grad_norm))


def _stopped(task: str, step: int, steps: int, kept: bool) -> Stopped:
    remedy = "run the same command again: it goes on from there" if kept else "run it again"
    wrong = f"was told to stop after step {step} of {steps}" + (", a checkpoint holds it" if kept else "")
    return Stopped.one("E-TRAIN-003", task, wrong, remedy)  # type: ignore[return-value]


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA has a class of its own; the CPU's allocator says it in words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def _half(micro_batch: int | None, batch: Sequence[Encoded], spec: AdapterSpec) -> int:
    """Half the rows at once, on each process.

    Raises:
        SpecRefused: one row at a time is too much already.
    """
    share = -(-len(batch) // spec.resources.team_size)
    rows = min(micro_batch or share, share)
    if rows == 1:
        wrong = f"one row of {max(row.length for row in batch)} tokens needs more memory than there is"
        remedy = "set training.gradient_checkpointing, or shorten data.max_tokens"
        raise SpecRefused.one("E-SPEC-013", f"{spec.task}:resources", wrong, remedy)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return rows // 2


def _answers(base: Base, model: Any, answer: Callable[..., Tensor], rows: Sequence[Encoded]) -> Tensor:
    """Logits of the model where some rows are learned, without dropout."""
    was_training = model.training
    model.eval()
    inputs, labels = collate(base, rows)
    with torch.no_grad(), base.autocast():
        logits = answer(inputs, labels != IGNORED).float().cpu()
    model.train(was_training)
    return logits


def number_of_steps(spec: AdapterSpec, rows: int) -> int:
    """Optimiser steps of a run on so many rows."""
    per_epoch = -(-rows // min(spec.training.batch_size, rows))
    return spec.training.steps or max(1, round(spec.training.epochs * per_epoch))


def _batches(spec: AdapterSpec, rows: Sequence[Encoded]) -> list[list[int]]:
    """The whole run's batches: as many epochs as asked for, each in its own order."""
    generator = torch.Generator().manual_seed(spec.seed)
    lengths = [row.length for row in rows]
    size = min(spec.training.batch_size, len(rows))
    steps = number_of_steps(spec, len(rows))
    batches: list[list[int]] = []
    while len(batches) < steps:
        batches += length_grouped(lengths, size, generator)
    return batches[:steps]


@contextmanager
def _recomputing(model: Any, training: TrainingSpec) -> Iterator[None]:
    """Gradient checkpointing, if asked for, while the block runs."""
    inner = model.get_base_model()
    if training.gradient_checkpointing:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        if training.gradient_checkpointing:
            inner.gradient_checkpointing_disable()
