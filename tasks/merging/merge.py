"""Many adapters of one base into one update: plan, check everything, then compute one module at a time.

    plan = check_parents(parents, base)
    for name, delta in merged_updates(plan, "ties", density=0.5): ...      # unscaled; W + scale * delta

The result does not depend on the order of the parents, on the number of threads, or on where a block ends.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from tasks.errors import Problem, SpecRefused, raise_if_any
from tasks.merging.base import BaseWeights
from tasks.merging.catalogue import Rule
from tasks.merging.consensus import Ask, whole_model
from tasks.merging.factors import Reduced, product, reduce_dense, reduce_factors
from tasks.merging.plan import MergePlan, Parent, check_parents
from tasks.merging.rules import rule_named, weight_problems
from tasks.merging.stack import Stack, stream_of
from tasks.merging.vectors import Update

__all__ = ["MergePlan", "Parent", "check_parents", "in_order", "merged_updates", "one_thread", "reduced_updates"]

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


def merged_updates(
    plan: MergePlan,
    rule: str,
    *,
    weights: Mapping[str, float] | None = None,
    density: float = 1.0,
    seed: int = 0,
    workers: int | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The merged change of each module in name order, unscaled, float32, as the base stores it: add `scale` times it.

    A name ending in ".bias" that is a module's bias comes with a vector. Every rule commutes with the scale.

    Args:
        weights: task to weight, in place of the parents' own. A parent of weight 0 takes no part.
        workers: modules computed at once, each by one thread, as many as torch may use here by default; the bytes are
            the same for any number.

    Raises:
        SpecRefused: unknown rule, density outside (0, 1], or weights that cannot be merged.
    """
    row, stacks, ask = asked(plan, rule, weights, density, seed)
    for stack, delta in in_order(partial(merged, row, ask), stacks, workers):
        yield stack.name, as_stored(plan, stack.name, delta)


def reduced_updates(
    plan: MergePlan,
    rule: str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    weights: Mapping[str, float] | None = None,
    density: float = 1.0,
    seed: int = 0,
    workers: int | None = None,
) -> Iterator[tuple[str, Reduced]]:
    """The merged change of each module as (out, rank) times (rank, in), with the share of its energy that was cut off.

    Rules with low-rank results are truncated exactly through QR of their factors; the others by a randomised range
    finder that starts from the inputs that the parents read.

    Args:
        rank: at most this; energy: the smallest rank that keeps this share of the squared norm.

    Raises:
        SpecRefused: as `merged_updates`, or neither rank nor energy is given.
    """
    _refuse_unbounded(rank, energy)
    row, stacks, ask = asked(plan, rule, weights, density, seed)
    for stack, reduced in in_order(partial(_reduced, row, ask, rank, energy), stacks, workers):
        yield stack.name, reduced


def reduced_differences(
    plan: MergePlan,
    base: BaseWeights,
    written: BaseWeights,
    *,
    rank: int | None = None,
    energy: float | None = None,
    seed: int = 0,
) -> Iterator[tuple[str, Reduced]]:
    """The same for a merge that is known by its weights alone: what lies between them and the base's, per module that
    the plan's parents change. The scale is in it.

    Raises:
        SpecRefused: neither rank nor energy is given.
    """
    _refuse_unbounded(rank, energy)
    for name in plan.modules:
        difference = written.weight(name).float() - base.weight(name).float()
        turned = difference[:, None] if name in plan.vectors else difference.T if plan.transposed else difference
        with one_thread():
            yield name, _truncated(plan.updates, name, turned, rank, energy, stream_of("", seed, name))


def _refuse_unbounded(rank: int | None, energy: float | None) -> None:
    if rank is None and energy is None:
        raise SpecRefused.one("E-MERGE-010", "rank", "neither rank nor energy is given", "give one of them")


def _truncated(
    updates: Sequence[Update], name: str, delta: Tensor, rank: int | None, energy: float | None, seed: int
) -> Reduced:
    """A dense change (out, in) by a range finder that starts from the inputs that the parents read."""
    start = torch.cat([update.inputs_read(name) for update in updates if name in update.modules])
    most = min(rank or min(delta.shape), *delta.shape)
    return reduce_dense(delta, most, start=start, energy=energy, seed=seed)


def merged(rule: Rule, ask: Ask, stack: Stack) -> Tensor:
    """One module by a rule, (out, in) float32."""
    if rule.factored is not None and stack.low_rank:
        return product(*rule.factored(stack, ask))
    return rule.dense(stack, ask)


def _reduced(rule: Rule, ask: Ask, rank: int | None, energy: float | None, stack: Stack) -> Reduced:
    if rule.factored is not None and stack.low_rank:
        B, A = rule.factored(stack, ask)
        if not rule.linear and energy is None and rank is not None and B.shape[1] <= rank:
            return Reduced(B.float(), A.float(), 0.0)  # B is orthonormal; a sum may cancel between its factors
        return reduce_factors(B, A, rank=rank, energy=energy)
    seed = stream_of("", ask.seed, stack.name)
    return _truncated(stack.updates, stack.name, rule.dense(stack, ask), rank, energy, seed)


def asked(
    plan: MergePlan, name: str, weights: Mapping[str, float] | None, density: float, seed: int
) -> tuple[Rule, list[Stack], Ask]:
    """The rule, one stack per module, and what is asked of it, all checked.

    Raises:
        SpecRefused: as `merged_updates`.
    """
    rule = rule_named(name)
    chosen = [(weights or {}).get(parent.task, parent.weight) for parent in plan.parents]
    problems = weight_problems(rule, chosen, "weights")
    problems += [
        Problem(
            "E-MERGE-003", f"weights.{task}", "is no parent", f"name one of {', '.join(p.task for p in plan.parents)}"
        )
        for task in sorted(set(weights or {}) - {parent.task for parent in plan.parents})
    ]
    if any(not math.isfinite(weight) for weight in chosen):
        problems.append(Problem("E-MERGE-004", "weights", f"are {chosen}", "give finite numbers"))
    if not 0 < density <= 1:
        problems.append(Problem("E-MERGE-005", "density", f"is {density}", "keep a share in (0, 1]"))
    raise_if_any(SpecRefused, problems)
    stacks = _stacks(plan, chosen)
    ask = Ask(density, seed)
    if rule.dialect.get("over") == "model":
        parts = {key: rule.dialect[key] for key in ("kept", "vote", "draw")}
        with one_thread():
            ask = whole_model(stacks, len(plan.parents), ask, **parts)
    return rule, stacks, ask


def _stacks(plan: MergePlan, weights: Sequence[float]) -> list[Stack]:
    digests = [update.digest for update in plan.updates]
    # equal adapters stand side by side; by weight, so that their order in the plan does not show
    places = sorted(range(len(digests)), key=lambda place: (digests[place], weights[place]))
    copies = {place: sum(digests[other] == digests[place] for other in places[:at]) for at, place in enumerate(places)}
    stacks = []
    for name, shape in plan.modules.items():
        members = [place for place in places if weights[place] != 0 and name in plan.updates[place].modules]
        if members:
            updates = tuple(plan.updates[place] for place in members)
            streams = tuple(stream_of(digests[place], copies[place], name) for place in members)
            chosen = tuple(weights[place] for place in members)
            parents = sum(weight != 0 for weight in weights)
            stacks.append(Stack(name, shape, tuple(members), updates, chosen, math.fsum(weights), streams, parents))
    return stacks


def as_stored(plan: MergePlan, name: str, delta: Tensor) -> Tensor:
    """A change (out, in) as the base stores the weight."""
    if name in plan.vectors:
        return delta[:, 0]
    return delta.T.contiguous() if plan.transposed else delta


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in the calling thread alone: the same bits on any machine setting, and no barriers inside small
    problems. Other threads keep their setting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_order(
    compute: Callable[[Asked], Answered], items: Iterable[Asked], workers: int | None = None
) -> Iterator[tuple[Asked, Answered]]:
    """Each item with its result, in order, each computed by one thread; at most `workers` results are waiting, by
    default as many as torch may use threads here."""
    workers = workers or torch.get_num_threads()
    if workers <= 1:
        for item in items:
            with one_thread():
                result = compute(item)
            yield item, result
        return
    waiting: deque[tuple[Asked, Future[Answered]]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for item in items:
            waiting.append((item, pool.submit(compute, item)))
            if len(waiting) > workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
