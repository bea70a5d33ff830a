"""What an implementation of the fused step is: one class with three methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["Counter", "Kernel", "StepCoefficients"]


class StepCoefficients(NamedTuple):
    r"""The numbers of a step, as in the formulas of `langevin_step`.

    Args:
        weights: $w_k$, one for each gradient.
        drift: $a$.
        scale: $s$; with 0 no noise is drawn.
        keep: $c$; with 0 and without momentum the points are not read.
        move: $b$; only with a momentum.
        low: The lowest value of a coordinate; None where there is none.
        high: The highest.
    """

    weights: tuple[float, ...]
    drift: float
    scale: float
    keep: float
    move: float
    low: float | None
    high: float | None


class Counter(NamedTuple):
    """Where the Philox noise of a step begins. Row $i$ gets the counters (quad, step, chain + i, stream); four numbers from each.

    Args:
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
    """An implementation of `langevin_step` for some devices, offered by an entry point of the group `composable_energy.kernels`.

    It is called only for points that it does not refuse, and `check_kernel` compares it with the reference.
    """

    @abstractmethod
    def available(self) -> tuple[bool, str]:
        """Returns whether it can run on this machine, and if not why; asked once."""

    @abstractmethod
    def refusal(self, x: Tensor) -> str:
        """Returns why it cannot take points of this dtype and on this device, as in "it takes no float64"; empty if it can."""

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
        """Writes the points after a step; arithmetic in float32 at least, rounded once.

        All tensors are contiguous, with the shape $(B, *)$, dtype and device of the points, of which there is one at least, and need no
        gradient.

        Args:
            x: The points.
            gradients: $g_k$; there may be none.
            momentum: The momentum; None for a step without.
            coefficients: The coefficients.
            counter: Where the noise begins.
            out: Where the points go; `x` itself for a step in place.
            out_momentum: Where the momentum goes; `momentum` itself for a step in place.
        """
