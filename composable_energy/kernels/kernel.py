"""The interface of implementations of the fused step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class StepCoefficients(NamedTuple):
    r"""The coefficients of a step, in the notation of `langevin_step`.

    Attributes:
        weights: $w_k$, one for each gradient.
        drift: $a$.
        scale: $s$; with 0 no noise is drawn.
        keep: $c$; with 0 and without momentum the points are not read.
        move: $b$; used only with a momentum.
        low: The lower bound of coordinates; None for none.
        high: The upper bound of coordinates; None for none.
    """

    weights: tuple[float, ...]
    drift: float
    scale: float
    keep: float
    move: float
    low: float | None
    high: float | None


class Counter(NamedTuple):
    """The first Philox counter of a step. Row $i$ has the counters (quad, step, chain + i, stream), with four numbers each.

    Attributes:
        seed: The key, from 0 to $2^{64} - 1$.
        step: The step, below $2^{32}$.
        chain: The id of the first chain; all ids stay below $2^{32}$.
        stream: The stream, below $2^{32}$.
    """

    seed: int
    step: int
    chain: int
    stream: int


class Kernel(ABC):
    """Abstract implementation of `langevin_step` for some devices; an entry point of the group `composable_energy.kernels`.

    It is called only for points that it does not refuse. `check_kernel` compares it with the reference.
    """

    @abstractmethod
    def available(self) -> tuple[bool, str]:
        """Returns whether it can run on this machine, and if not the reason; called once."""

    @abstractmethod
    def refusal(self, x: Tensor) -> str:
        """Returns why it refuses points of this dtype and device, such as "it takes no float64"; empty if it takes them."""

    @abstractmethod
    def langevin_step(
        self,
        x: Tensor,
        gradients: Sequence[Tensor],
        momentum: Tensor | None,
        coefficients: StepCoefficients,
        counter: Counter,
        out: Tensor,
        out_momentum: Tensor | None,
    ) -> None:
        """Writes the points after a step, computed in at least float32 and rounded once.

        All tensors are contiguous, have the shape $(B, *)$, dtype and device of the points, at least one row, and require no gradient.

        Args:
            x: The points.
            gradients: $g_k$; may be empty.
            momentum: The momentum; None for a step without momentum.
            coefficients: The coefficients.
            counter: The first counter of the noise.
            out: The output for points; `x` itself for a step in place.
            out_momentum: The output for the momentum; `momentum` itself for a step in place.
        """
