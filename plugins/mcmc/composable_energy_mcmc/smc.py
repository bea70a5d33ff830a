"""Sequential Monte Carlo: chains anneal from a Gaussian to the energy, with weights and resampling, and estimate its normaliser."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from composable_energy import Energy, SamplingWarning
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, has_rows
from composable_energy_mcmc.annealing.path import evaluate, hamiltonian_step
from composable_energy_mcmc.annealing.schedule import Scheduled, effective_sample_size, systematic_resample, tune_schedule
from composable_energy_mcmc.batch import REFUSED, flatten_points
from composable_energy_mcmc.hamiltonian import van_der_corput

_MIN_LEVELS = 8
_LIKE_FAMILIES = 5.0  # by which relatives that are alike raise variances
_LAST_STEPS = 3  # at the last level, after the resampling, so that copies separate


@dataclass(frozen=True)
class Particles(State):
    """A state with weights and ancestors; points without density, whose weight is 0, have the energy of the base."""

    log_weight: Tensor  # with shape (B,); the mean of the weights is the estimate of Z
    ancestor: Tensor  # the index of the draw of the base that each point descends from, with shape (B,)


@dataclass(frozen=True)
class SMC(Scheduled):
    r"""Tempered sequential Monte Carlo (Neal, 2001; Del Moral, Doucet & Jasra, 2006): draws, and $\log Z$ with its standard error.

    Chains start at exact draws of a Gaussian $E_0$, not at `init`, and go through the levels $0 = b_0 < \dots < b_J = 1$ of
    $E_b = (1 - b)\, E_0 + b\, E$. At each level their weights grow by the factor $e^{(b_j - b_{j-1})(E_0 - E)}$, and they take steps of
    Hamiltonian Monte Carlo. All chains are resampled when their effective number falls below half, and at the last level, where three more
    steps separate the copies. A step of the driver is a level, and costs `moves` trajectories.

    `trace.scalars` has the level `b`, the effective number of chains `ess`, and the estimate `log_z` of $\log \int e^{-E}$ with its
    standard error `log_z_se`; the last ones are final. The error is that of the weights of families, the chains that descend from one draw
    of $E_0$ (Lee & Whiteley, 2018), taken as independent, since systematic resampling adds little noise. It falls as $1 / \sqrt{B}$.

    Resampling makes draws depend on the number of chains. All chains must have the same conditions, and none can restart alone; chains that
    diverge are left out of the weights. Levels and step sizes are tuned on separate pilot chains, as in `Tempering`.

    `leapfrogs`, `mean`, `scale`, `acceptance` and `schedule` are those of `Tempering`.

    Args:
        levels: $J$; None takes as many as keep the share `kept` of the weights at each.
        kept: The share of the effective number of chains that survives a level.
        moves: The number of trajectories of a chain at each level.

    References:
        Variance estimation in the particle filter (Lee & Whiteley, 2018), https://doi.org/10.1093/biomet/asy028
    """

    kept: float = 0.95
    moves: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("levels", self.levels, optional=True)
        check_number("kept", self.kept, above=0, below=1)
        check_integer("moves", self.moves)

    @property
    def total_steps(self) -> int | None:
        if self.schedule is not None:
            return len(self.schedule.levels) - 1 + _LAST_STEPS
        return None if self.levels is None else self.levels + _LAST_STEPS

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.schedule is not None:
            return self, x
        schedule, points = tune_schedule(energy, x, noise, self.mean, self.scale, self.leapfrogs, self.acceptance, keep=self.kept)
        count = max(_MIN_LEVELS, len(schedule.levels) - 1) if self.levels is None else self.levels
        return replace(self, schedule=schedule.respace(count + 1)), points

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> Particles:
        if has_rows(energy):
            raise ExpressionError(f"SMC draws all chains from one density, and {energy} has a condition for each: bind one value for all.")
        schedule = self.tuned_schedule
        schedule.check(x)
        base = schedule.base.to(x)
        state = evaluate(energy, base.from_standard(noise.normal(x)))
        outside = state.energy == torch.inf
        energies = torch.where(outside, base.energy(state.x).to(state.energy), state.energy)
        log_weight = torch.where(outside, -torch.inf, torch.zeros_like(energies, dtype=torch.float64))
        return Particles(state.x, energies, state.grad, log_weight, torch.tensor(list(noise.chains), device=x.device))

    def step(self, energy: Energy, state: Particles, noise: Noise) -> tuple[Particles, Info]:
        schedule = self.tuned_schedule
        last, base = len(schedule.levels) - 1, schedule.base.to(state.x)
        before, b = (schedule.levels[min(step, last)] for step in (noise.step - 1, noise.step))
        log_weight = state.log_weight + (b - before) * (base.energy(state.x).double() - state.energy.double())
        ones, points, rates = torch.ones_like(state.energy), state, []
        levels, step_sizes = b * ones, schedule.step_sizes[min(noise.step, last)] * ones
        for move in range(self.moves):
            number = (noise.step - 1) * self.moves + move + 1
            own = noise.at(number)
            leapfrogs = math.ceil(van_der_corput(number) * self.leapfrogs)
            log_uniform = own.uniform(state.x, stream=1).log()
            points, rate = hamiltonian_step(energy, base, points, levels, step_sizes, own.normal(state.x), leapfrogs, log_uniform)
            rates.append(rate)
        return Particles(points.x, points.energy, points.grad, log_weight, state.ancestor), Info(torch.stack(rates).mean(0), {"b": b})

    def couple(self, energy: Energy, state: Particles, noise: Noise) -> tuple[Particles, Mapping[str, float]]:
        last = noise.step == len(self.tuned_schedule.levels) - 1
        return resample(energy, state, noise, last=last, advice="give `mean` and `scale` of a nearer Gaussian")

    def warn(self, state: State, exact: bool) -> Sequence[SamplingWarning]:
        state = cast(Particles, state)
        # The variance of a mean over that of independent points, the largest over coordinates; relatives that differ do not count.
        x = flatten_points(state.x).double()
        x = (x - x.mean(0)) / x.std(0, correction=0)
        sums = x.new_zeros(len(x), x.shape[1]).index_add_(0, state.ancestor.unique(return_inverse=True)[1], x)
        factor = (sums.square().sum(0) / len(x)).nan_to_num(0.0).max().item() if x.numel() else 0.0
        if factor <= _LIKE_FAMILIES:
            return []
        families = len(state.ancestor.unique())
        seen = (
            f"The {len(state.x)} points descend from {families} draws of the Gaussian and still resemble their relatives, so they are "
            f"worth about {len(state.x) / factor:.0f} independent ones: shares of modes and `log_z` are as uncertain."
        )
        ways = "Take more chains, `kept` nearer to 1, more `moves`, or the `mean` and `scale` of a Gaussian nearer to the density."
        return [SamplingWarning("families", seen, ways)]

    traits: ClassVar[Traits] = Traits(refused=REFUSED, couple=couple, warn=warn)


def resample(energy: Energy, state: Particles, noise: Noise, *, last: bool, advice: str) -> tuple[Particles, Mapping[str, float]]:
    """Resamples particles at the last level, and where their effective number falls below half; returns the scalars of all, too."""
    count = len(state.x)
    log_z = (state.log_weight.logsumexp(0) - math.log(count)).item()
    if math.isnan(log_z) or log_z == -math.inf:
        raise OptionError(f"No chain has reached a point where {energy} has a density: {advice}.")
    ess = effective_sample_size(state.log_weight)
    scalars = {"ess": ess, "log_z": log_z, "log_z_se": _standard_error(state)}
    if not last and ess >= count / 2:
        return state, scalars
    rows = systematic_resample(state.log_weight, noise.uniform(state.x, stream=2)[0])
    moved = {name: getattr(state, name)[rows] for name in ("x", "energy", "grad", "ancestor")}
    return replace(state, **moved, log_weight=torch.full_like(state.log_weight, log_z)), scalars


def _standard_error(state: Particles) -> float:
    """Returns the standard error of the mean weight over the mean weight, by the variance between families."""
    count, weight = len(state.x), torch.softmax(state.log_weight, 0)
    if count == 1:
        return math.inf
    ancestors, family = state.ancestor.unique(return_inverse=True)
    families = weight.new_zeros(len(ancestors)).index_add_(0, family, weight)
    return math.sqrt(max((families.square().sum().item() * count - 1) / (count - 1), 0.0))
