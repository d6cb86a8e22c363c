"""Going on from a champion without leaving it: after every step, each weight is drawn back a little to where it began.

L2-SP (Li, Grandvalet & Davoine 2018, arXiv:1802.01483) adds pull/2 * |w - w0|^2 to the loss; here the term is decoupled
from the gradient's scaling, as weight decay is in AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101):

    w <- w + min(1, rate * pull) * (w0 - w)
"""

from __future__ import annotations

import torch
from torch import Tensor


class Anchor:
    """Where the weights of an optimizer stood when it was made.

    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> anchor = Anchor(torch.optim.SGD([w], lr=0.1), pull=5.0)
    >>> _ = w.data.fill_(4.0)
    >>> anchor.draw_back()
    >>> w.tolist()
    [3.0]
    """

    def __init__(self, optimizer: torch.optim.Optimizer, pull: float) -> None:
        self.optimizer, self.pull = optimizer, pull
        self.began: list[list[Tensor]] = [
            [weight.detach().clone() for weight in group["params"]] for group in optimizer.param_groups
        ]

    @torch.no_grad()
    def draw_back(self) -> None:
        """One step toward the beginning, at each group's own rate."""
        for group, began in zip(self.optimizer.param_groups, self.began, strict=True):
            share = min(1.0, group["lr"] * self.pull)
            for weight, first in zip(group["params"], began, strict=True):
                weight.lerp_(first, share)
