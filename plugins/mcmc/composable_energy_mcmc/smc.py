"""Tempered sequential Monte Carlo: chains climb from a Gaussian to the energy, are resampled on the way, and weigh its normaliser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.sampling import Info, Noise, Sampler, State, has_rows
from composable_energy_mcmc.hamiltonian import van_der_corput
from composable_energy_mcmc.ladder import Ladder, between, check_base, climbed, fitted
from composable_energy_mcmc.metropolis import REFUSED
from composable_energy_mcmc.options import fraction, whole
from composable_energy_mcmc.path import Base, follow, resampled, state_at

__all__ = ["SMC", "Particles"]

_FEWEST = 8
_LAST = 3  # steps at the last level once all weights are equal, in which copies part


@dataclass(frozen=True)
class Particles(State):
    """A state with weights and descent; points that have no density, and so no weight, have the energy of the base.

    Args:
        log_weight: With shape $(B,)$; the mean of the weights themselves is the estimate of $Z$.
        eve: From which point of the base each has come, with shape $(B,)$.
    """

    log_weight: Tensor
    eve: Tensor


@dataclass(frozen=True)
class SMC(Sampler):
    r"""Tempered sequential Monte Carlo (Neal, 2001; Del Moral, Doucet & Jasra, 2006): draws, and $\log Z$ with its standard error.

    Chains begin at exact draws of a Gaussian $E_0$, wherever others would start, and climb the levels $0 = b_0 < \dots < b_J = 1$ of
    $E_b = (1 - b)\, E_0 + b\, E$. At each their weights grow by the factor $e^{(b_j - b_{j-1})(E_0 - E)}$, and they take steps of
    Hamiltonian Monte Carlo. Where fewer than half of the chains carry the weight, all are resampled; so they are at the last level, where
    three more steps part the copies. A step of the driver is a level, and costs `moves` trajectories.

    `trace.scalars` has `b`, the effective number of chains `ess`, and `log_z` with its standard error `log_z_se`, by the last of which
    $Z = \int e^{-E}$ is known. The error is that of the weights of families, the chains that have come from one draw of $E_0$ (Lee &
    Whiteley, 2018): they are independent but for resampling, which is even enough to be left out. It goes with $1 / \sqrt{B}$.

    Chains meet, so draws depend on how many there are, all must have the same conditions, and none can start again alone; those that
    diverge are left out of the weights. Levels and step sizes are tuned on pilot chains of their own, as for `Tempering`.

    Args:
        levels: $J$; None takes as many as keep `kept` of the weights at each.
        kept: The share of the effective number of chains that survives a level.
        moves: How many trajectories a chain takes at each level.
        leapfrogs: The longest trajectory; its length runs through $1, \dots$ to it, as for `hmc`.
        mean: The mean of $E_0$, a number or a tensor with the shape of a point; None finds it with `scale`.
        scale: Its standard deviation, likewise.
        acceptance: The mean acceptance of trajectories to tune for.
        ladder: What was tuned.

    References:
        Variance estimation in the particle filter (Lee & Whiteley, 2018), https://doi.org/10.1093/biomet/asy028
    """

    levels: int | None = None
    kept: float = 0.95
    moves: int = 1
    leapfrogs: int = 8
    mean: float | Tensor | None = None
    scale: float | Tensor | None = None
    acceptance: float = 0.8
    ladder: Ladder | None = None

    refused: ClassVar[Mapping[str, str]] = REFUSED

    def __post_init__(self) -> None:
        if self.levels is not None:
            whole("levels", self.levels)
        fraction("kept", self.kept)
        whole("moves", self.moves)
        whole("leapfrogs", self.leapfrogs)
        fraction("acceptance", self.acceptance)
        check_base(self.mean, self.scale)

    @property
    def total_steps(self) -> int | None:
        if self.ladder is not None:
            return len(self.ladder.levels) - 1 + _LAST
        return None if self.levels is None else self.levels + _LAST

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> Sampler:
        if self.ladder is not None:
            return self
        if self.mean is None or self.scale is None:
            base = fitted(energy, x, noise.child("base"), self.leapfrogs)
        else:
            base = Base.of(self.mean, self.scale, x)
        levels, lengths, _ = climbed(energy, base, x, noise.child("climb"), self.leapfrogs, self.acceptance, self.kept)
        count = max(_FEWEST, len(levels) - 1) if self.levels is None else self.levels
        logs = between([math.log(length) for length in lengths], count + 1)
        return replace(self, ladder=Ladder(base, (*between(levels, count + 1)[:-1], 1.0), tuple(map(math.exp, logs))))

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> Particles:
        if has_rows(energy):
            raise ExpressionError(f"SMC draws all chains from one density, and {energy} has a condition for each: bind one value for all.")
        ladder = self._ladder
        ladder.check(x)
        base = ladder.base.to(x)
        state = state_at(energy, base.points(noise.normal(x)))
        lost = state.energy == torch.inf
        energies = torch.where(lost, base.energy(state.x).to(state.energy), state.energy)
        log_weight = torch.where(lost, -torch.inf, torch.zeros_like(energies, dtype=torch.float64))
        return Particles(state.x, energies, state.grad, log_weight, torch.tensor(list(noise.chains), device=x.device))

    def step(self, energy: Energy, state: Particles, noise: Noise) -> tuple[Particles, Info]:
        ladder, place = self._ladder, min(noise.step, len(self._ladder.levels) - 1)
        base, before = ladder.base.to(state.x), ladder.levels[min(noise.step - 1, place)]
        b, length = ladder.levels[place], ladder.step_sizes[place]
        log_weight = state.log_weight + (b - before) * (base.energy(state.x).double() - state.energy.double())
        points, rates = state, []
        same = torch.ones_like(state.energy)
        for move in range(self.moves):
            number = (noise.step - 1) * self.moves + move + 1
            own = noise.at(number)
            count = math.ceil(van_der_corput(number) * self.leapfrogs)
            log_uniform = own.uniform(state.x, stream=1).log()
            points, rate = follow(energy, base, points, b * same, length * same, own.normal(state.x), count, log_uniform)
            rates.append(rate)
        return Particles(points.x, points.energy, points.grad, log_weight, state.eve), Info(torch.stack(rates).mean(0), {"b": b})

    def couple(self, energy: Energy, state: Particles, noise: Noise) -> tuple[Particles, Mapping[str, float]]:
        count, weight = len(state.x), torch.softmax(state.log_weight, 0)
        log_z = (state.log_weight.logsumexp(0) - math.log(count)).item()
        if math.isnan(log_z) or log_z == -math.inf:
            raise OptionError(f"No chain has come to where {energy} has a density: give the `mean` and `scale` of a Gaussian nearer to it.")
        ess = 1 / weight.square().sum().item()
        eves, family = state.eve.unique(return_inverse=True)
        families = weight.new_zeros(len(eves)).index_add_(0, family, weight)
        variance = (families.square().sum().item() * count - 1) / (count - 1) if count > 1 else math.inf
        told = {"ess": ess, "log_z": log_z, "log_z_se": math.sqrt(max(variance, 0.0))}
        arriving = noise.step == len(self._ladder.levels) - 1
        if not arriving and ess >= count / 2:
            return state, told
        rows = resampled(state.log_weight, noise.uniform(state.x, stream=2)[0])
        equal = torch.full_like(state.log_weight, log_z)
        return Particles(state.x[rows], state.energy[rows], state.grad[rows], equal, state.eve[rows]), told

    @property
    def _ladder(self) -> Ladder:
        if self.ladder is None:
            raise OptionError("SMC has no ladder yet: let `sample` tune it.")
        return self.ladder
