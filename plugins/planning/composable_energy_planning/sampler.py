r"""The sampler of trajectories: a search from both ends, a descent, and Hamiltonian Monte Carlo with the curvature of transitions."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, normal, plain_energy
from composable_energy_mcmc.hamiltonian import propose, van_der_corput
from composable_energy_mcmc.metric import Metric
from composable_energy_mcmc.metropolis import REFUSED, choose
from composable_energy_mcmc.tuning import DualAveraging, try_step
from composable_energy_planning.parts import parts_of
from composable_energy_planning.refine import curvature, descend
from composable_energy_planning.search import Search

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
        found = Search(self.visited, self.tree, self.edges).paths(parts, len(x), generator).to(x)
        found = descend(energy, parts, found, self.descent)
        inverse = torch.linalg.inv(curvature(parts, found).mean(0))
        metric = Metric(torch.linalg.cholesky((inverse + inverse.T) / 2).to(x), x.shape[1:])
        state, averaging = self.init(energy, found, noise), DualAveraging(_FIRST)
        for step in range(1, self.tuning_steps + 1):
            trial = replace(self, step_size=averaging.length, metric=metric)
            state, rate = try_step(trial, energy, state, noise.at(step))
            averaging.add(self.acceptance - rate)
        return replace(self, step_size=averaging.best, metric=metric), state.x

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if self.step_size is None or self.metric is None:
            raise OptionError("The sampler has no step_size yet: let `sample` tune it.")
        count = math.ceil(van_der_corput(noise.step) * self.leapfrogs)
        proposal, log_ratio = propose(energy, state, normal(state.x, noise), self.step_size, count, self.metric)
        return choose(state, proposal, log_ratio, noise, count)
