"""Sequential Monte Carlo of discrete points: chains anneal from equally likely states to the energy, and estimate its normaliser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy import Energy
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, has_rows, integration
from composable_energy_discrete.gibbs import all_states, sweep
from composable_energy_discrete.mixed import summed_out
from composable_energy_discrete.neighbours import Blocks
from composable_energy_mcmc import LogZ
from composable_energy_mcmc.annealing.schedule import next_level
from composable_energy_mcmc.smc import Particles, resample

_LAST = 3  # sweeps at the last level, after the resampling, so that copies separate
_FEW, _TOGETHER = math.log(2**16) + 1e-9, 2**14  # states whose sum needs no samples, by the logarithm; and those evaluated together


@dataclass(frozen=True)
class _Blocked(Particles):
    blocks: Blocks = field(metadata={"per_chain": False, "saved": False})


@dataclass(frozen=True)
class DiscreteSMC(Sampler):
    r"""Sequential Monte Carlo of discrete points, as `SMC` of continuous ones: draws, and $\log Z$ with its standard error.

    Chains start at states that are equally likely, and go through levels $0 = b_0 < \dots < b_J = 1$ of $b\, E$. At each their weights
    grow by the factor $e^{-(b_j - b_{j-1}) E}$, and they take sweeps of Gibbs sampling. `trace.scalars` has `b`, `ess`, `log_z` and
    `log_z_se` as those of `SMC`, where $Z$ is the sum of $e^{-E}$ over all states.

    Args:
        kept: The share of the effective number of chains that survives a level.
        moves: The number of sweeps at each level. Where they are too few, draws lag behind the level, and `log_z` is too small by more than
            its error: at a critical point compare two numbers.
        levels: The levels; None tunes them on pilot chains.
    """

    kept: float = 0.9
    moves: int = 4
    levels: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_number("kept", self.kept, above=0, below=1)
        check_integer("moves", self.moves)

    @property
    def total_steps(self) -> int | None:
        return None if self.levels is None else len(self.levels) - 1 + _LAST

    @property
    def tuned(self) -> bool:
        return self.levels is not None

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        state, levels = self.init(energy, x, noise), [0.0]
        while levels[-1] < 1:
            levels.append(next_level(levels[-1], -state.energy.double(), self.kept))
            step = noise.at(len(levels) - 1)
            weighted = replace(state, log_weight=-(levels[-1] - levels[-2]) * state.energy.double())
            state, _ = resample(energy, weighted, step, last=True, advice=_ADVICE)
            state = self._move(energy, state, step, levels[-1])
        return replace(self, levels=tuple(levels)), state.x

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> _Blocked:
        if has_rows(energy):
            raise ExpressionError(f"SMC draws all chains from one density, and {energy} has a condition for each: bind one value for all.")
        x = energy.sites.scatter(noise.normal(x))
        weight = torch.full((len(x),), energy.sites.log_states, dtype=torch.float64, device=x.device)
        return _Blocked(x, energy(x), torch.zeros_like(x), weight, torch.tensor(list(noise.chains), device=x.device), Blocks(energy, x))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if self.levels is None:
            raise OptionError("DiscreteSMC has no levels yet: give some, or let `sample` tune them.")
        last, before = len(self.levels) - 1, cast(_Blocked, state)
        low, b = (self.levels[min(step, last)] for step in (noise.step - 1, noise.step))
        weight = before.log_weight - (b - low) * before.energy.double()
        return replace(self._move(energy, before, noise, b), log_weight=weight), Info(scalars={"b": b})

    def couple(self, energy: Energy, state: Any, noise: Noise) -> tuple[Any, Mapping[str, float]]:
        return resample(energy, state, noise, last=noise.step == len(cast(Sequence[float], self.levels)) - 1, advice=_ADVICE)

    traits: ClassVar[Traits] = Traits(states=("discrete",), gradients=0, couple=couple)

    def _move(self, energy: Energy, state: Particles, noise: Noise, b: float) -> _Blocked:
        for move in range(self.moves):
            state = cast(Particles, sweep(energy, state, noise.at((noise.step - 1) * self.moves + move + 1), 1 / b))
        return cast(_Blocked, state)


_ADVICE = "take more chains, or an energy that is finite at more states"


def estimate_log_z(
    energy: Energy, event: Sequence[int], particles: int, moves: int, *, seed: int | None, batch_size: int | None, dtype: torch.dtype | None
) -> LogZ:
    r"""Returns the logarithm of the sum of $e^{-E}$ over all states of discrete points; `composable_energy.log_z` calls it.

    Of mixed points it is the integral of that sum, of up to 64 combinations of discrete numbers.
    """
    sampler, settings = DiscreteSMC(moves=moves), {"seed": seed, "batch_size": batch_size, "dtype": dtype}
    with integration(energy, (particles, *event), sampler="discrete", **settings) as problem:
        if problem.plain.sites.mixed:
            return ce.log_z(summed_out(problem.plain, problem.points.zeros()[None]), particles=particles, moves=moves, **settings)
        if problem.plain.sites.log_states <= _FEW:
            states = all_states(problem.plain, problem.points.zeros()[None])
            value = torch.cat([-problem.energy(some).double() for some in states.split(_TOGETHER)]).logsumexp(0).item()
            return LogZ(value, 0.0, value, None, 1.0, 1, len(states), 0)
    _, trace = energy.latents.sample((particles, *event), sampler=sampler, trace=True, **settings)
    value, error, ess = (float(trace.scalars[name][-1]) for name in ("log_z", "log_z_se", "ess"))
    return LogZ(value, error, value, None, ess / particles, len(trace.sampler.levels) - 1, particles, 0)
