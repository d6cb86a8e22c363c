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
    """

    B: Tensor  # (out, rank)
    A: Tensor  # (rank, in)
    scale: float
    magnitude: Tensor | None = None  # (out,)
    bias: Tensor | None = None  # (out,), still to be multiplied by scale
    gain: Tensor | None = None
    of_inputs: bool = False
    cut: bool = False

    @property
    def needs_shape(self) -> bool:
        """Whether the adapter alone does not say how large the module is."""
        return self.gain is not None or self.cut

    def shaped(self, out: int, into: int) -> LowRank:
        """The same for a module of this shape."""
        if self.gain is not None:
            return replace(self, B=self.gain.new_zeros(out, 0), A=self.gain.new_zeros(0, into))
        return replace(self, A=self.A[:, :into].contiguous(), cut=False)

    def gain_fits(self, out: int, into: int) -> bool:
        return self.gain is None or len(self.gain) == (into if self.of_inputs else out)
