"""A merged body brought nearer to its experts without labels: a small correction is trained so that the merged model
answers each task's rows as that task's own adapter does.

    minimise over (B_m, A_m) per module   sum_i KL( expert_i(x) || merged(x) ),  x of task i,
    merged = W + dW_start + B A           Hinton et al. 2015, arXiv:1503.02531, at temperature 1

It is no merge rule on weights alone but a short training, and is named so wherever it is reported. Only the inputs of
the rows are read (generation: also the answer, as the text that is being continued); right or wrong plays no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.merging.apply import applied, linear_modules
from tasks.merging.merge import as_stored
from tasks.merging.plan import MergePlan
from tasks.methods.build import final_linear
from tasks.training.base import Base
from tasks.training.encoding import IGNORED, Encoded, collate

BATCH = 32
Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Lesson:
    """A batch of one task, and what its expert says: log-probabilities (positions, classes)."""

    task: str
    inputs: Mapping[str, Tensor]
    where: Tensor | None  # generation: (batch, time), true where an answer's token is written
    said: Tensor


def distilled(
    base: Base,
    plan: MergePlan,
    rows: Mapping[str, Sequence[Encoded]],
    start: Mapping[str, Tensor],
    *,
    rank: int = 16,
    steps: int = 300,
    rate: float = 1e-3,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> dict[str, Tensor]:
    """The starting update plus the trained correction, per module, float32 on the CPU as the base stores it.

    Args:
        base: the dense base.
        rows: task to rows of that task; no test rows.
        start: a merged update, scaled, such as the regression mean.
        on_step: called with the step, their number and the loss.

    Raises:
        KeyError: a parent has no rows.
    """
    lessons = _lessons(base, plan, rows)
    generator = torch.Generator().manual_seed(seed)
    corrections = _fresh_corrections(base, plan, rank, generator)
    optimizer = torch.optim.AdamW(
        [factor for pair in corrections.values() for factor in pair], lr=rate, weight_decay=0.0
    )
    base.model.eval()
    with applied(base.model, start) as model, _corrected(model, corrections), torch.enable_grad():
        for step in range(steps):
            lesson = lessons[step % len(lessons)] if step % len(lessons) else _shuffled(lessons, generator)[0]
            for group in optimizer.param_groups:
                group["lr"] = rate * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2)
            logits = _logits(base, model, plan, lesson)
            loss = F.kl_div(logits.log_softmax(-1), lesson.said, reduction="batchmean", log_target=True)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            on_step(step + 1, steps, float(loss.detach()))
    found = {name: delta.clone() for name, delta in start.items()}
    for name, (B, A) in corrections.items():
        change = (B @ A).detach().cpu()
        found[name] = found.get(name, 0) + (change.T if plan.transposed else change)
    return found


@torch.no_grad()
def _lessons(base: Base, plan: MergePlan, rows: Mapping[str, Sequence[Encoded]]) -> list[Lesson]:
    """Batches of all tasks in turn, each with its own expert's answers."""
    by_task: list[list[Lesson]] = []
    in_order = sorted(zip(plan.parents, plan.updates, strict=True), key=lambda pair: pair[1].digest)  # not by place
    for parent, update in in_order:
        own = {name: as_stored(plan, name, update.delta(name)) for name in update.modules}
        ordered = sorted(rows[parent.task], key=lambda row: row.length)
        by_task.append([])
        with applied(base.model, own) as model:
            model.eval()
            for start in range(0, len(ordered), BATCH):
                inputs, labels = collate(base, ordered[start : start + BATCH])
                where = labels != IGNORED if labels.dim() == 2 else None
                asked = Lesson(parent.task, inputs, where, torch.empty(0))
                said = _logits(base, model, plan, asked).log_softmax(-1)
                by_task[-1].append(Lesson(parent.task, inputs, where, said))
    longest = max(map(len, by_task))
    return [own[turn % len(own)] for turn in range(longest) for own in by_task]


def _shuffled(lessons: list[Lesson], generator: torch.Generator) -> list[Lesson]:
    """The lessons in a new order, in place."""
    order = torch.randperm(len(lessons), generator=generator).tolist()
    lessons[:] = [lessons[place] for place in order]
    return lessons


def _logits(base: Base, model: Any, plan: MergePlan, lesson: Lesson) -> Tensor:
    """(positions, vocabulary) where an answer is written, or (batch, classes) of the task's own head."""
    if lesson.where is not None:
        return model(**lesson.inputs, use_cache=False).logits[lesson.where].float()
    name, head = final_linear(model)
    read: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    try:
        model(**lesson.inputs)
    finally:
        hook.remove()
    x = read[0]
    if x.dim() == 3:  # decoders score every position; the last real token decides
        x = x[torch.arange(len(x)), lesson.inputs["attention_mask"].sum(1) - 1]
    own = {part: value.to(x.device, torch.float32) for part, value in plan.heads[lesson.task].items()}
    return F.linear(x.float(), own[f"{name}.weight"], own.get(f"{name}.bias"))


def _fresh_corrections(base: Base, plan: MergePlan, rank: int, generator: torch.Generator) -> dict[str, Factors]:
    """B = 0 and a random A for each linear layer, so that the first step stands at the start. A is drawn by the CPU, so
    that a seed means the same on every device."""
    found = {}
    for name in linear_modules(base.model, plan.modules):
        out, into = plan.modules[name]
        A = torch.randn(min(rank, out, into), into, generator=generator) / into**0.5
        found[name] = (
            torch.zeros(out, len(A), device=base.device).requires_grad_(),
            A.to(base.device).requires_grad_(),
        )
    return found


@contextmanager
def _corrected(model: Any, corrections: Mapping[str, Factors]) -> Iterator[None]:
    """The model's modules with their corrections added while the block runs."""
    modules = dict(model.named_modules())

    def adding(B: Tensor, A: Tensor) -> Any:
        return lambda module, inputs, out: out + F.linear(F.linear(inputs[0], A), B)

    hooks = [modules[name].register_forward_hook(adding(B, A)) for name, (B, A) in corrections.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
