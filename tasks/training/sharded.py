"""A frozen base of which each process of a team keeps a part; one block of layers at a time is whole, to compute.

What FSDP is to QLoRA (Zhao et al. 2023, arXiv:2304.11277), reduced to a base without gradients. The linear weights of a
block, packed as they are, and their scales lie in one buffer of bytes; each process keeps its share of it. A block's
buffer is gathered before the block computes, forwards or backwards, and is given up when the next one is wanted.

Why not torch's own (tried with torch 2.13, bitsandbytes 0.50, PEFT 0.21, two gloo processes): FSDP1 takes no integers;
FSDP2 shards NF4 weights with the same losses, but PEFT puts no adapter on a base that it has sharded, so that every
process would hold the base whole until then, and the scales stay whole. Accelerate leaves such weights out of sharding
altogether, and stored as floats they can change on the way (bitsandbytes issue 1945).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from tasks.errors import SpecRefused
from tasks.training.base import linear_modules
from tasks.training.team import Team

ALIGNED = 64  # bytes; no kernel asks for more


class Block:
    """The weights of one block: `part` of its bytes is kept, `whole` has memory only while the block is gathered.

    The tensors become views of `whole`, also those that autograd remembers, so that they are there whenever it is.
    """

    def __init__(self, tensors: Sequence[Tensor], team: Team) -> None:
        sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors]
        share = -(-sum(sizes) // (team.size * ALIGNED)) * ALIGNED
        self.whole = torch.zeros(share * team.size, dtype=torch.uint8, device=tensors[0].device)
        start = 0
        for tensor, size in zip(tensors, sizes, strict=True):
            place = self.whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            tensor.data = place.copy_(tensor)
            start += size
        self.part = self.whole[team.rank * share : (team.rank + 1) * share].clone()
        self.give_up()

    def gather(self) -> None:
        """All parts in their places; every process of the team calls it at the same point of its work."""
        self.whole.untyped_storage().resize_(self.whole.numel())
        dist.all_gather_single(self.whole, self.part)

    def give_up(self) -> None:
        """The memory of the whole goes back."""
        self.whole.untyped_storage().resize_(0)


class Passage:
    """Which block of a base is whole: at most one."""

    def __init__(self) -> None:
        self.gathered: Block | None = None

    def want(self, block: Block) -> None:
        """Have this block whole, and no other: whoever wants the next one has no more use for the last."""
        if self.gathered is block:
            return
        if self.gathered is not None:
            self.gathered.give_up()
        block.gather()
        self.gathered = block


def shard(model: nn.Module, team: Team) -> None:
    """Share the blocks of a loaded base that has no adapter yet, for the rest of this process.

    Every process must then run the model as often as the others, forwards and backwards, on whatever rows.

    Raises:
        SpecRefused: the base has no list of blocks.
    """
    linear = set(linear_modules(model).values())
    found = {block: [module for module in block.modules() if module in linear] for block in blocks_of(model)}
    if not any(found.values()):
        remedy = "set resources.shard_base: false"
        raise SpecRefused.one("E-SPEC-045", "resources.shard_base", "the base has no list of layers", remedy)
    shared = {id(module.weight) for modules in found.values() for module in modules}
    for parameter in model.parameters():
        if id(parameter) not in shared:  # it may be a view of a mapped file, which would stay in memory behind it
            parameter.data = parameter.data.clone()
    passage = Passage()
    for block, modules in found.items():
        if modules:
            want = partial(passage.want, Block(_frozen_tensors(modules), team))
            block.register_forward_pre_hook(partial(_before_forward, want))
            block.register_forward_hook(partial(_before_backward, want))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules, in order: decoder or encoder layers."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks_of(child)
    return found


def _frozen_tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    """What is large in linear layers: weights, and the scales of 4-bit ones."""
    tensors: list[Tensor] = []
    for module in modules:
        weight: Any = module.weight
        tensors.append(weight)
        if (state := getattr(weight, "quant_state", None)) is not None:
            tensors.append(state.absmax)
    return tensors


def _before_forward(want: Callable[[], None], module: nn.Module, inputs: Any) -> None:
    want()


def _before_backward(want: Callable[[], None], module: nn.Module, inputs: Any, output: Any) -> None:
    """The block is wanted again once the gradient of its result is known: before anything inside it runs backwards."""
    hidden = output[0] if isinstance(output, tuple) else output
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: want())
