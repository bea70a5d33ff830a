"""Integration of flows with a step size for each chain, and flows down a potential."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

import composable_energy as ce
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import ComposableEnergyError

_SAFETY, _LEAST, _GREATEST = 0.9, 0.2, 5.0
_SPAN = 5.0  # the time of the paper's process
_FIRST = 0.2  # the greatest change in the first step, relative to 1 + |x|

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


class EditError(ComposableEnergyError, ValueError):
    """An edit that contradicts what it keeps, or that left the support of the prior."""

    documentation: ClassVar[str] = "errors.md#editerror"


def integrate(
    velocity: Velocity, x: Tensor, start: float, end: float, *, tolerance: float, first: float, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns the points at the end of the flow $dx / dt = v(x, t)$, by the method of Bogacki and Shampine of order 3(2).

    Each chain has its own steps, so its result does not depend on the others. The results are the points, with shape $(B, *)$, and the
    number of evaluations of each chain and whether it arrived, with shape $(B,)$.

    The velocity gets points of shape $(b, *)$, their times with shape $(b,)$, and the rows of the chains that they belong to. The tolerance
    is the error of a step, relative to $1 + |x|$, as a root mean square over coordinates; `first` is the longest first step that is tried,
    and `rounds` the largest number of tried steps of a chain.
    """
    x, active = x.clone(), torch.arange(len(x), device=x.device)
    time, step = x.new_full((len(x),), start), x.new_full((len(x),), first)
    slope, count = velocity(x, time, active), x.new_ones(len(x))
    speed = (slope / (1 + x.abs())).flatten(1).square().mean(1).sqrt()
    step = step.minimum(_FIRST / speed.clamp(min=_FIRST / first))  # a long step may end where the flow is still, and look right
    for _ in range(rounds):
        if not len(active):
            break
        t, before, one = time[active], x[active], slope[active]
        h = torch.minimum(step[active], end - t)
        wide = unsqueeze_to(h, before)
        two = velocity(before + wide / 2 * one, t + h / 2, active)
        three = velocity(before + wide * 0.75 * two, t + h * 0.75, active)
        after = before + wide / 9 * (2 * one + 3 * two + 4 * three)
        four = velocity(after, t + h, active)
        wrong = wide * (-5 / 72 * one + two / 12 + three / 9 - four / 8) / (1 + torch.maximum(before.abs(), after.abs()))
        error = wrong.flatten(1).square().mean(1).sqrt() / tolerance
        good = error <= 1  # NaN is not: the step becomes shorter, and a chain that cannot go on does not arrive
        count[active] += 3
        moved = active[good]
        x[moved], slope[moved] = after[good], four[good]
        time[moved] += h[good]
        factor = (_SAFETY * error.clamp(min=1e-6) ** (-1 / 3)).clamp(_LEAST, _GREATEST)
        step[active] = h * torch.where(error.isfinite(), factor, _LEAST)
        active = active[time[active] < end - 1e-6 * (end - start)]
    arrived = torch.ones(len(x), dtype=torch.bool, device=x.device)
    arrived[active] = False
    return x, count, arrived


def descend(
    potential: Callable[[Tensor, Tensor], Tensor], support: Any, z: Tensor, *, tolerance: float, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns where points flow down a potential, $du / d\tau = -\nabla_u U$, in unconstrained coordinates $u$ of their support.

    $U$ is called with points of shape $(b, *)$ and the rows of the start that they belong to. For the results, `tolerance` and `rounds` see
    `integrate`.
    """
    try:
        inside = biject_to(constraints.real if support is None or support is ce.supports.circle else support)
    except NotImplementedError as error:
        raise EditError(f"Latent points on {support} have no unconstrained coordinates, in which a flow could move them.") from error

    def velocity(u: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            return -torch.autograd.grad(potential(inside(u), rows).sum(), u)[0]

    u, evaluations, arrived = integrate(velocity, inside.inv(z), 0.0, _SPAN, tolerance=tolerance, first=_SPAN / 4, rounds=rounds)
    return inside(u).detach(), evaluations, arrived
