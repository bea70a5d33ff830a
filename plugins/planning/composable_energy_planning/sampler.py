r"""The sampler of trajectories: a search from both ends, a descent, and Hamiltonian Monte Carlo with the curvature of transitions."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient, normal, plain_energy
from composable_energy_mcmc.batch import REFUSED, choose
from composable_energy_mcmc.hamiltonian import propose, van_der_corput
from composable_energy_mcmc.metric import Metric
from composable_energy_mcmc.tuning import DualAveraging, try_step
from composable_energy_planning.parts import Parts, parts_of
from composable_energy_planning.search import Search
from composable_energy_planning.terms import Effort

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
        wide = unsqueeze_to(better, x)
        x, slope = torch.where(wide, moved, x), torch.where(wide, slope_there, slope)
        energies = torch.where(better, found, energies)
        damping = torch.where(better, damping / 3, damping * 4).clamp(_LEAST, _MOST)
        if step % _REFRESH == 0:
            if bool((before - energies < tolerance).all()) and bool((damping > 1e3).logical_or(better).all()):
                break
            before, matrix = energies, curvature(parts, x)
    return x


def curvature(parts: Parts, x: Tensor) -> Tensor:
    """Returns the Gauss-Newton curvature at points of $n = T d$ numbers, with shape $(B, n, n)$ and positive definite."""
    x = parts.states(x)
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
            for waypoint, axes, _ in waypoints:
                states = x[:, time].detach().requires_grad_()
                found = _rows_of_jacobian((waypoint.seen(states[:, axes]) - waypoint.target) / waypoint.width, states).double()
                matrix[:, time, :, time, :] += torch.einsum("nkj,nkl->njl", found, found)
    order = parts.point(torch.arange(times * size).view(1, times, size)).flatten()
    matrix = matrix.flatten(3, 4).flatten(1, 2)[:, order][:, :, order]
    return matrix + 1e-3 * torch.eye(times * size, dtype=torch.float64)


def _residuals(parts: Parts, pairs: Tensor) -> Tensor:
    """Returns numbers whose squares add up to twice the energy of moves, but for odds of learned energies, with shape $(n, K)$."""
    states, ends = pairs[:, 0], pairs[:, 1]
    found = []
    for pair, axes, weight in parts.motion:
        found.append(weight**0.5 * pair.ahead.whiten(states[:, axes], ends[:, axes])[0])
    for term, axes, weight in parts.others:
        if isinstance(term, Effort):
            found.append((weight * term.weight) ** 0.5 * (term.seen(ends[:, axes]) - term.seen(states[:, axes])))
    for zone in parts.zones:
        found.append((2 * -zone.log_clear(states, ends) + 1e-6).sqrt().unsqueeze(1))
    return torch.cat(found, 1)


def _rows_of_jacobian(values: Tensor, inputs: Tensor) -> Tensor:
    """Returns the derivatives of values with shape $(n, K)$ by their own row of the inputs, with shape $(n, K, *)$."""
    rows = [torch.autograd.grad(values[:, column].sum(), inputs, retain_graph=True)[0] for column in range(values.shape[1])]
    return torch.stack(rows, 1).detach()


_FIRST = 0.2


@dataclass(frozen=True)
class Trajectories(Sampler):
    r"""Draws trajectories of an expression over `over_time` energies, of all homotopy classes that a search finds.

    Pilot chains start at trajectories of a `Search` and descend. Then all chains take steps of Hamiltonian Monte Carlo, exact for the
    density, in units of the mean curvature of the pilots. Chains rarely cross an obstacle, so the share of each homotopy class is that of
    the search, which is right for the states that it found.

    Args:
        visited: The number of visited states in the search.
        tree: The number of states of each tree of the search.
        edges: The number of edges from each state.
        descent: The number of steps of the descent.
        step_size: The step size in whitened units; None tunes it on pilot chains.
        leapfrogs: The longest trajectory; lengths run through $1, \dots$ to it.
        acceptance: The mean acceptance to tune for.
        metric: The units; None finds them from the pilots.
    """

    visited: int = 600
    tree: int = 900
    edges: int = 16
    descent: int = 60
    step_size: float | None = None
    leapfrogs: int = 8
    acceptance: float = 0.8
    tuning_steps: int = 40
    metric: Metric | None = None

    traits: ClassVar[Traits] = Traits(steps=50, refused=REFUSED, from_pilots=True)

    def __post_init__(self) -> None:
        for name, least in (("visited", 1), ("tree", 1), ("edges", 1), ("descent", 0), ("leapfrogs", 1), ("tuning_steps", 1)):
            check_integer(name, getattr(self, name), least)
        check_number("step_size", self.step_size, above=0, optional=True)
        if (self.step_size is None) != (self.metric is None):
            raise OptionError("step_size and metric are tuned together: give both of them, or neither.")
        check_number("acceptance", self.acceptance, above=0, below=1)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.step_size is not None:
            return self, x
        plain, _ = plain_energy(energy)
        if plain is None:
            raise ExpressionError(f"{energy} has a support, and trajectories are found in all of R^n: use `chees` with `init`.")
        parts = parts_of(plain)
        generator = torch.Generator().manual_seed(noise.child("search").seed % 2**63)
        found = parts.point(Search(self.visited, self.tree, self.edges).paths(parts, len(x), generator)).to(x)
        found = descend(energy, parts, found, self.descent)
        inverse = torch.linalg.inv(curvature(parts, found).mean(0))
        metric = Metric(torch.linalg.cholesky((inverse + inverse.T) / 2).to(x), x.shape[1:])
        state, averaging = self.init(energy, found, noise), DualAveraging(_FIRST)
        for step in range(1, self.tuning_steps + 1):
            state, rate = try_step(replace(self, step_size=averaging.length, metric=metric), energy, state, noise.at(step))
            averaging.add(self.acceptance - rate)
        return replace(self, step_size=averaging.best, metric=metric), state.x

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if self.step_size is None or self.metric is None:
            raise OptionError("The sampler has no step_size yet: let `sample` tune it.")
        count = math.ceil(van_der_corput(noise.step) * self.leapfrogs)
        proposal, log_ratio = propose(energy, state, normal(state.x, noise), self.step_size, count, self.metric)
        return choose(state, proposal, log_ratio, noise, count)
