"""One adapted module as an adapter stores it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """One adapted module as stored: dW = scale * B A, with DoRA's magnitude and the bias when there are any.

    Attributes:
        gain: IA3: a factor per output channel, or per input channel if `of_inputs`; there is no B A then.
        cut: A is shared by modules of several widths; the module's own takes its first columns.
        value: what the base's parameter is replaced by, as the base stores it; there is no B A then.
    """

    B: Tensor  # (out, rank)
    A: Tensor  # (rank, in)
    scale: float
    magnitude: Tensor | None = None  # (out,)
    bias: Tensor | None = None  # (out,), still to be multiplied by scale
    gain: Tensor | None = None
    of_inputs: bool = False
    cut: bool = False
    value: Tensor | None = None

    @property
    def needs_shape(self) -> bool:
        """Whether the adapter alone does not say how large the module is."""
        return self.gain is not None or self.value is not None or self.cut

    @property
    def is_product(self) -> bool:
        """Whether the change is scale * B A and nothing else."""
        return self.magnitude is None and self.gain is None and self.value is None

    @property
    def is_vector(self) -> bool:
        """Whether it replaces a parameter of one axis: a bias, or the gains of a norm."""
        return self.value is not None and self.value.dim() == 1

    def fits(self, stored: tuple[int, ...] | None) -> bool:
        """Whether it can change a weight that the base stores in this shape."""
        if self.value is not None:
            return tuple(self.value.shape) == stored
        if stored is None or len(stored) != 2:
            return False
        if self.gain is not None:
            return len(self.gain) == stored[1 if self.of_inputs else 0]
        return not self.cut or stored[1] <= self.A.shape[1]

    def shaped(self, stored: tuple[int, ...]) -> LowRank:
        """The same for a weight of this shape, which it fits."""
        if self.cut:
            return replace(self, A=self.A[:, : stored[1]].contiguous(), cut=False)
        out, into = (*stored, 1)[:2]
        return replace(self, B=self.B.new_zeros(out, 0), A=self.A.new_zeros(0, into))
