"""Integration of flows with a step size for each chain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to

__all__ = ["integrate"]

_MOST = 2000  # rounds
_SAFETY, _LEAST, _GREATEST = 0.9, 0.2, 5.0


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, span: float, *, tolerance: float = 1e-2) -> tuple[Tensor, Tensor]:
    r"""Returns the points at the end of the flow $dx / dt = v(x)$, by the method of Bogacki and Shampine of order 3(2).

    Each chain has its own steps, so its result does not depend on the others.

    Args:
        velocity: $v$, called with points of shape $(B, *)$ and the rows of the chains that they belong to.
        x: The points at the start, with shape $(B, *)$.
        span: The length of time.
        tolerance: The error of a step, relative to $1 + |x|$, as a root mean square over coordinates.

    Returns:
        The points, with shape $(B, *)$, and the number of evaluations of each chain, with shape $(B,)$.
    """
    x, count = x.clone(), x.new_zeros(len(x))
    time, step = x.new_zeros(len(x)), x.new_full((len(x),), span / 4)
    slope, active = velocity(x, torch.arange(len(x), device=x.device)), torch.arange(len(x), device=x.device)
    count += 1
    for _ in range(_MOST):
        if not len(active):
            break
        start, first = x[active], slope[active]
        h = torch.minimum(step[active], span - time[active])
        wide = unsqueeze_to(h, start)
        second = velocity(start + wide / 2 * first, active)
        third = velocity(start + wide * 0.75 * second, active)
        end = start + wide / 9 * (2 * first + 3 * second + 4 * third)
        last = velocity(end, active)
        wrong = wide * (-5 / 72 * first + second / 12 + third / 9 - last / 8) / (1 + torch.maximum(start.abs(), end.abs()))
        error = wrong.flatten(1).square().mean(1).sqrt() / tolerance
        good = (error <= 1) | ~error.isfinite()  # what is not finite is reported by the caller
        count[active] += 3
        moved = active[good]
        x[moved], slope[moved] = end[good], last[good]
        time[moved] += h[good]
        factor = (_SAFETY * error.clamp(min=1e-6) ** (-1 / 3)).clamp(_LEAST, _GREATEST)
        step[active] = h * torch.where(error.isfinite(), factor, 1.0)
        active = active[time[active] < span * (1 - 1e-6)]
    return x, count
