"""The training loop: one adapter on a borrowed base.

Flat on purpose. Padding is hardly computed (rows of one length share a batch), the output layer runs on the learned
positions alone, and the loss of a batch is the mean over its learned tokens however it is cut into micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.data.examples import Example
from tasks.methods.build import attached, fresh_adapter, write_adapter
from tasks.specs import AdapterSpec, TrainingSpec
from tasks.training.base import Base, seeded
from tasks.training.curve import Curve, Look, Step
from tasks.training.encoding import IGNORED, Encoded, collate, encode, length_grouped
from tasks.training.head import start_head_from_class_means
from tasks.training.lowrank import compute_in_few_passes

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Trained:
    """A finished run. `folder` holds the PEFT adapter with the lowest validation loss."""

    folder: Path
    curve: Curve
    trainable_parameters: int
    seconds: float
    tokens_per_second: float
    padding_share: float
    peak_bytes: int
    compute: str


@dataclass(frozen=True)
class Progress:
    """Where a run is: shown to people while it runs."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


def train_adapter(
    base: Base,
    spec: AdapterSpec,
    train: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    *,
    start: Path | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_look: Callable[[Look], None] = lambda look: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Trained:
    """Train one adapter and write the best one, by validation loss, to a folder.

    Stops early when the loss is no longer a number; the curve then ends there.

    Args:
        start: an adapter folder to continue from, at the rate that the spec states for it; a fresh adapter otherwise.

    Raises:
        SpecRefused: the method does not fit the base.
        ArtifactRefused: `start` does not fit the base.
    """
    rows, held_out = encode(base, train), encode(base, validation)
    batches = _batches(spec, rows)
    lent = attached(base, start, trainable=True) if start else fresh_adapter(base, spec.method, spec.seed)
    began = clock()
    with lent as model, seeded(base.device, spec.seed), _recomputing(model, spec.training):
        if base.kind == "classification" and start is None:
            start_head_from_class_means(base, model, rows)
        compute_in_few_passes(model)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rate = spec.training.learning_rate * (spec.retrain.rate_factor if start else 1.0)
        optimizer = _optimizer(model, spec.training, base, rate)
        rates = [group["lr"] for group in optimizer.param_groups]
        answer = answer_logits_of(base, model, rows[:2])
        steps, looks, tokens, padded = [], [], 0, 0
        look_at = {round((i + 1) * len(batches) / spec.training.validations) for i in range(spec.training.validations)}
        best: dict[str, Tensor] = {}
        lowest = math.inf
        start_loss = validation_loss(base, model, answer, held_out) if held_out else None
        model.train()
        for number, batch in enumerate(batches, start=1):
            factor = rate_factor(number, len(batches), spec.training)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            loss, seen, width = _backward(base, answer, [rows[i] for i in batch], spec.training)
            norm = float(nn.utils.clip_grad_norm_(trainable, spec.training.max_grad_norm))
            tokens, padded = tokens + seen, padded + width
            elapsed = clock() - began
            record = Step(number, loss, rates[0] * factor, norm, seen, elapsed)
            steps.append(record)
            on_step(record)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                break
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            left = elapsed / number * (len(batches) - number)
            on_progress(Progress(number, len(batches), loss, tokens / max(elapsed, 1e-9), left))
            if number in look_at and held_out:
                look = Look(number, validation_loss(base, model, answer, held_out))
                model.train()
                looks.append(look)
                on_look(look)
                if look.loss < lowest:
                    lowest = look.loss
                    best = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in best:
                    parameter.copy_(best[name])
        write_adapter(model, folder, Path(spec.base.model).name if spec.base.is_folder else spec.base.model)
        count = sum(parameter.numel() for parameter in trainable)
    seconds = clock() - began
    curve = Curve(tuple(steps), tuple(looks), len(batches), start_loss)
    speed = tokens / max(seconds, 1e-9)
    padding = 1 - tokens / max(padded, 1)
    return Trained(folder, curve, count, seconds, speed, padding, _peak_bytes(base), base.compute_reason)


def rate_factor(step: int, steps: int, training: TrainingSpec) -> float:
    """Share of the peak rate at a step, 1-based: a linear rise, then the schedule's fall to a tenth (or none).

    >>> rate_factor(1, 100, TrainingSpec(warmup=0.1)), rate_factor(10, 100, TrainingSpec(warmup=0.1))
    (0.1, 1.0)
    """
    rise = max(1, round(training.warmup * steps))
    if step <= rise:
        return step / rise
    done = (step - rise) / max(1, steps - rise)
    if training.schedule == "constant":
        return 1.0
    fall = (1 - done) if training.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return 0.1 + 0.9 * fall


def answer_logits_of(base: Base, model: Any, probe: Sequence[Encoded]) -> Callable[..., Tensor]:
    """A function (inputs, where) -> logits at the positions in `where` (batch, time), or of the classes.

    Generation needs the vocabulary at learned positions only. The short way, body then output layer, is taken if a
    probe shows that the model does the same and nothing else; models that scale or cap their logits keep the long way.
    """
    if base.kind == "classification":
        return lambda inputs, where: model(**inputs).logits

    def long_way(inputs: dict[str, Tensor], where: Tensor) -> Tensor:
        return model(**inputs, use_cache=False).logits[where]

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(inner, "get_decoder") or inner.get_decoder() is None:
        return long_way

    body, output = inner.get_decoder(), inner.get_output_embeddings()

    def short_way(inputs: dict[str, Tensor], where: Tensor) -> Tensor:
        return output(body(**inputs, use_cache=False).last_hidden_state[where])

    inputs, _ = collate(base, probe)
    passed: list[tuple[Tensor, Tensor]] = []
    hook = output.register_forward_hook(lambda module, args, result: passed.append((args[0], result)))
    was_training = model.training
    model.eval()
    with torch.no_grad(), base.autocast():
        logits = model(**inputs, use_cache=False).logits
        hidden = body(**inputs, use_cache=False).last_hidden_state
    hook.remove()
    model.train(was_training)
    read, written = passed[0]
    same = torch.equal(written.to(logits.dtype), logits) and torch.allclose(read, hidden, atol=1e-3, rtol=1e-3)
    return short_way if same else long_way


def validation_loss(base: Base, model: Any, answer: Callable[..., Tensor], rows: Sequence[Encoded]) -> float:
    """Mean loss per learned token (or per row, for classes) without dropout."""
    model.eval()
    total, count = 0.0, 0
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    with torch.no_grad(), base.autocast():
        for start in range(0, len(order), EVALUATION_BATCH):
            inputs, labels = collate(base, [rows[i] for i in order[start : start + EVALUATION_BATCH]])
            loss, learned = _summed_loss(base, answer, inputs, labels)
            total, count = total + float(loss), count + learned
    return total / max(count, 1)


def _batches(spec: AdapterSpec, rows: Sequence[Encoded]) -> list[list[int]]:
    """The whole run's batches: as many epochs as asked for, each in its own order."""
    generator = torch.Generator().manual_seed(spec.seed)
    lengths = [row.length for row in rows]
    size = min(spec.training.batch_size, len(rows))
    per_epoch = -(-len(rows) // size)
    steps = spec.training.steps or max(1, round(spec.training.epochs * per_epoch))
    batches: list[list[int]] = []
    while len(batches) < steps:
        batches += length_grouped(lengths, size, generator)
    return batches[:steps]


def _backward(base: Base, answer: Any, rows: Sequence[Encoded], training: TrainingSpec) -> tuple[float, int, int]:
    """Gradients of one batch: (mean loss, tokens, tokens with padding)."""
    micro = training.micro_batch or len(rows)
    learned = len(rows) if base.kind == "classification" else sum(len(row.target) for row in rows)
    total, width = 0.0, 0
    for start in range(0, len(rows), micro):
        inputs, labels = collate(base, rows[start : start + micro])
        with base.autocast():
            loss, _ = _summed_loss(base, answer, inputs, labels)
        (loss / learned).backward()
        total += float(loss.detach())
        width += inputs["input_ids"].numel()
    tokens = sum(len(row.prompt) if base.kind == "classification" else row.length for row in rows)
    return total / learned, tokens, width


def _summed_loss(base: Base, answer: Any, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, int]:
    """Cross entropy summed over what is learned, and how many that is."""
    if base.kind == "classification":
        return F.cross_entropy(answer(inputs, None).float(), labels, reduction="sum"), len(labels)
    where = labels != IGNORED
    return F.cross_entropy(answer(inputs, where).float(), labels[where], reduction="sum"), int(where.sum())


def _optimizer(model: Any, training: TrainingSpec, base: Base, rate: float) -> torch.optim.Optimizer:
    """AdamW on the adapter; a classification head learns faster than the adapter, for it starts coarser."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for n, p in named if "modules_to_save" not in n], "lr": rate}]
    if head := [p for n, p in named if "modules_to_save" in n]:
        groups.append({"params": head, "lr": min(1.0, rate * training.head_rate)})
    paged = training.optimizer == "paged_adamw_8bit" or (training.optimizer == "auto" and base.device.type == "cuda")
    if paged:
        import bitsandbytes

        return bitsandbytes.optim.PagedAdamW8bit(groups, weight_decay=training.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=training.weight_decay, fused=True)


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


def _peak_bytes(base: Base) -> int:
    """Most memory held: of the card, or resident in this process since it started."""
    if base.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(base.device))
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the parent held when it forked, too
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
