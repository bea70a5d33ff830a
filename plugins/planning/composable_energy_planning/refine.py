r"""Descent of trajectories with the curvature of their transitions, and the metric that it gives to a sampler."""

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.sampling import energy_and_gradient
from composable_energy_planning.parts import Parts

_REFRESH = 4
_LEAST, _MOST = 1e-3, 1e8


def descend(energy: Energy, parts: Parts, x: Tensor, steps: int, tolerance: float = 0.5) -> Tensor:
    r"""Moves trajectories downhill, each by damped Gauss-Newton steps $x - (P + \lambda D)^{-1} \nabla E$, with one gradient each.

    $P$ is the curvature of transitions, waypoints, zones and efforts, $D$ its diagonal. Where a step lowers the energy, $\lambda$
    falls; else the trajectory stays and $\lambda$ rises. It ends if no energy falls by more than `tolerance` in `_REFRESH` steps. `parts`
    are the energy, taken apart.
    """
    energies, slope = energy_and_gradient(energy, x)
    damping, before = torch.full_like(energies, 0.1), energies
    matrix = curvature(parts, x)
    for step in range(1, steps + 1):
        damped = matrix + torch.diag_embed((damping[:, None] * matrix.diagonal(dim1=1, dim2=2)).to(matrix))
        way = torch.cholesky_solve(slope.flatten(1).unsqueeze(-1).to(matrix), torch.linalg.cholesky(damped)).squeeze(-1)
        moved = x - way.view_as(x).to(x)
        found, slope_there = energy_and_gradient(energy, moved)
        better = found < energies
        x, slope = torch.where(better[:, None, None], moved, x), torch.where(better[:, None, None], slope_there, slope)
        energies = torch.where(better, found, energies)
        damping = torch.where(better, damping / 3, damping * 4).clamp(_LEAST, _MOST)
        if step % _REFRESH == 0:
            if bool((before - energies < tolerance).all()) and bool((damping > 1e3).logical_or(better).all()):
                break
            before, matrix = energies, curvature(parts, x)
    return x


def curvature(parts: Parts, x: Tensor) -> Tensor:
    """Returns the Gauss-Newton curvature at trajectories of shape $(B, T, d)$, with shape $(B, T d, T d)$ and positive definite."""
    rows, times, size = x.shape
    matrix = x.new_zeros(rows, times, size, times, size, dtype=torch.float64)
    with torch.enable_grad():
        pairs = torch.stack([x[:, :-1], x[:, 1:]], 2).flatten(0, 1).detach().requires_grad_()
        jacobian = _rows_of_jacobian(_residuals(parts, pairs), pairs).double()  # (B (T - 1), K, 2, d)
        blocks = torch.einsum("nkaj,nkbl->najbl", jacobian, jacobian).unflatten(0, (rows, times - 1))
        at = torch.arange(times - 1)
        for one in (0, 1):
            for other in (0, 1):
                matrix[:, at + one, :, at + other, :] += blocks[:, :, one, :, other, :].transpose(0, 1)
        for time, waypoints in parts.waypoints.items():
            for waypoint in waypoints:
                states = x[:, time].detach().requires_grad_()
                found = _rows_of_jacobian((waypoint.seen(states) - waypoint.target) / waypoint.width, states).double()
                matrix[:, time, :, time, :] += torch.einsum("nkj,nkl->njl", found, found)
    matrix = matrix.flatten(3, 4).flatten(1, 2)
    return matrix + 1e-3 * torch.eye(times * size, dtype=torch.float64)


def _residuals(parts: Parts, pairs: Tensor) -> Tensor:
    """Returns numbers whose squares add up to twice the energy of moves, but for odds of learned energies, with shape $(n, K)$."""
    states, ends = pairs[:, 0], pairs[:, 1]
    found = []
    for pair, axes, weight in parts.motion:
        found.append(weight**0.5 * pair.ahead.whiten(states[:, axes], ends[:, axes])[0])
    for effort, weight in parts.efforts:
        moves = ends - states if effort.axes is None else (ends - states)[:, list(effort.axes)]
        found.append((weight * effort.weight) ** 0.5 * moves)
    for entered in parts.zones:
        found.append((2 * -entered.log_clear(states, ends) + 1e-6).sqrt().unsqueeze(1))
    return torch.cat(found, 1)


def _rows_of_jacobian(values: Tensor, inputs: Tensor) -> Tensor:
    """Returns the derivatives of values with shape $(n, K)$ by their own row of the inputs, with shape $(n, K, *)$."""
    rows = [torch.autograd.grad(values[:, column].sum(), inputs, retain_graph=True)[0] for column in range(values.shape[1])]
    return torch.stack(rows, 1).detach()
