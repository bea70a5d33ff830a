r"""Short Langevin chains whose steps differ between rows and change over time, for objectives that `sample` does not fit."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.sampling import Noise

Factor = float | Tensor


def run_langevin(
    gradient: Callable[[Tensor], Tensor], x: Tensor, noise: Noise, factors: Iterable[tuple[Factor, Factor]]
) -> tuple[Tensor, Tensor]:
    r"""Runs chains $x' = x - a_k \nabla E(x) + b_k\, \xi$, and returns their last points and the share of those that diverged.

    A chain that is not finite in the end is replaced by its start.
    The factors $(a_k, b_k)$ of each step are numbers, or tensors with shape $(B,)$.
    """
    start = x = x.detach()
    for number, (drift, scale) in enumerate(factors, 1):
        x = x - _like(drift, x) * gradient(x) + _like(scale, x) * noise.at(number).normal(x)
    finite = x.flatten(1).isfinite().all(1)
    return torch.where(unsqueeze_to(finite, x), x, start), 1 - finite.to(x).mean()


def _like(factor: Factor, x: Tensor) -> Factor:
    return unsqueeze_to(factor, x) if isinstance(factor, Tensor) else factor
