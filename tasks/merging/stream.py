"""A merge as a stream of modules, each a function from a row block to its merged rows: a few blocks are in memory,
whatever the size of the module or the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.merging.merge import MergePlan, asked, merged, one_thread
from tasks.merging.vectors import row_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.merging.catalogue import Rule
    from tasks.merging.consensus import Ask
    from tasks.merging.stack import Stack


@dataclass(frozen=True)
class Merged:
    """The merged change of one module; nothing is computed before `blocks` is walked.

    Attributes:
        shape: as the base stores it: (out, in), (in, out) or, for a bias, (out,).
        prepared: thresholds or factors, found when the first block is asked for; gives the rows of a block.
    """

    name: str
    shape: tuple[int, ...]
    prepared: Callable[[], Callable[[slice], Tensor]] = field(repr=False)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive row ranges, as the base stores them, with the change there, float32."""
        with one_thread():
            rows = self.prepared()
        for block in row_blocks(self.shape[0], self.shape[1] if len(self.shape) > 1 else 1):
            with one_thread():
                change = rows(block)
            yield block, change


def merged_stream(
    plan: MergePlan,
    rule: str,
    *,
    weights: Mapping[str, float] | None = None,
    density: float = 1.0,
    seed: int = 0,
) -> Iterator[Merged]:
    """What `merged_updates` gives, bit for bit, in row blocks.

    Raises:
        SpecRefused: as `merged_updates`.
    """
    row, stacks, ask = asked(plan, rule, weights, density, seed)
    for stack in stacks:
        yield Merged(stack.name, stored_shape(plan, stack.name, stack.shape), _rows_of(plan, row, ask, stack))
        for update in plan.updates:
            update.forget()


def held(name: str, change: Tensor) -> Merged:
    """A change that is in memory already, as the base stores it."""
    return Merged(name, tuple(change.shape), lambda: lambda block: change[block])


def stored_shape(plan: MergePlan, name: str, shape: tuple[int, int]) -> tuple[int, ...]:
    """The shape of a change as the base stores the weight."""
    if name in plan.vectors:
        return (shape[0],)
    return shape[::-1] if plan.transposed else shape


def _rows_of(plan: MergePlan, rule: Rule, ask: Ask, stack: Stack) -> Callable[[], Callable[[slice], Tensor]]:
    vector = stack.name in plan.vectors

    def prepared() -> Callable[[slice], Tensor]:
        if plan.transposed and not vector:  # blocks of its rows are columns of ours
            dense = merged(rule, ask, stack).T.contiguous()
            return lambda block: dense[block]
        if rule.factored is not None and stack.low_rank:
            B, A = rule.factored(stack, ask)
            return _flat(vector, lambda block: (B[block] @ A).float())
        if rule.rows is not None:
            return _flat(vector, rule.rows(stack, ask))
        whole = rule.dense(stack, ask)
        return _flat(vector, lambda block: whole[block])

    return prepared


def _flat(vector: bool, rows: Callable[[slice], Tensor]) -> Callable[[slice], Tensor]:
    return (lambda block: rows(block)[:, 0]) if vector else rows
