"""Hamiltonian Monte Carlo with a trajectory length tuned by all chains together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.kernels import normal
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, energy_and_gradient
from composable_energy_mcmc.batch import finite_rows, flatten_points
from composable_energy_mcmc.hamiltonian import propose, van_der_corput
from composable_energy_mcmc.metric import IDENTITY, CovarianceEstimator, Metric
from composable_energy_mcmc.metropolis import REFUSED, choose
from composable_energy_mcmc.tuning import DualAveraging, find_first_length, try_step

__all__ = ["ChEES", "criterion_gradient"]

_DRAWS = 60  # of each pilot chain, for the estimate of the metric
_LEAST = 1e-8  # the smallest acceptance in the harmonic mean
_RATE, _FORGET, _MOST = 0.025, 0.95, 0.35  # of the ascent in log T


@dataclass(frozen=True)
class ChEES(Sampler):
    r"""ChEES-HMC (Hoffman, Radul & Sountsov, 2021): Hamiltonian Monte Carlo that tunes all its options.

    A trajectory takes $L = \lceil h\, T / \varepsilon \rceil$ leapfrog steps, and as many gradients; $h$ runs through the sequence of
    van der Corput, the same for all chains. Step size $\varepsilon$, time $T$ and metric $S$ are tuned on separate pilot chains:
    $\varepsilon$ by dual averaging, and $T$ by ascent of the mean square of the change of $\lVert y - \bar y \rVert^2$, the squared
    distance from the mean in whitened coordinates $y = S^{-1} x$. With acceptance $a_k$ and last momentum $p'_k$ of chain $k$ the gradient
    in $\log T$ is

    $$\sum_k a_k\, h\, T \left(\lVert y'_k - \bar y' \rVert^2 - \lVert y_k - \bar y \rVert^2\right)
    \langle y'_k - \bar y', p'_k \rangle \Big/ \sum_k a_k.$$

    `trace.sampler` is the tuned sampler; pass it again to skip the tuning.

    Args:
        step_size: $\varepsilon > 0$, in units of whitened points; None tunes it together with `trajectory`.
        trajectory: $T > 0$, in units of whitened points; None tunes it together with `step_size`.
        metric: `"identity"`; `"diagonal"` or `"dense"`, estimated from the pooled draws of the pilot chains; `"auto"`, which is dense where
            that pays and diagonal elsewhere; or a metric that was tuned before.
        acceptance: The harmonic mean of the acceptance to tune for. At .65, which is best in many dimensions, a chain may stay for long in
            a narrow part of a curved energy.
        max_leapfrogs: The largest $L$. It is needed where the criterion grows without bound, as on some funnels and bananas.
        tuning_steps: The number of steps of the pilot chains for $\varepsilon$ and $T$; half of them precede the estimate of the metric.

    References:
        An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo (Hoffman et al., 2021),
        https://proceedings.mlr.press/v130/hoffman21a.html
    """

    step_size: float | None = None
    trajectory: float | None = None
    metric: Literal["auto", "identity", "diagonal", "dense"] | Metric = "auto"
    acceptance: float = 0.75
    max_leapfrogs: int = 64
    tuning_steps: int = 450

    default_steps: ClassVar[int] = 100
    refused: ClassVar[Mapping[str, str]] = REFUSED

    def __post_init__(self) -> None:
        for name in ("step_size", "trajectory"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        if (self.step_size is None) != (self.trajectory is None):
            raise OptionError("step_size and trajectory are tuned together: give both of them, or neither.")
        if not isinstance(self.metric, Metric) and self.metric not in ("auto", "identity", "diagonal", "dense"):
            raise OptionError(f"metric must be 'auto', 'identity', 'diagonal', 'dense' or one that was tuned, got {self.metric!r}.")
        if self.step_size is not None and self.metric in ("diagonal", "dense"):
            raise OptionError(f"metric={self.metric!r} is estimated while step_size and trajectory are tuned: leave these out.")
        check_number("acceptance", self.acceptance, above=0, below=1)
        check_integer("max_leapfrogs", self.max_leapfrogs)
        check_integer("tuning_steps", self.tuning_steps, 2)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> Sampler:
        if self.step_size is not None:
            return self
        sampler, state = replace(self, metric=self._metric), self.init(energy, x, noise)
        if isinstance(self.metric, Metric) or self.metric == "identity":
            return _tune_trajectory(sampler, energy, state, noise, self.tuning_steps)[0]
        first, state = _tune_trajectory(sampler, energy, state, noise.child("first"), self.tuning_steps // 2)
        spread, draws = CovarianceEstimator(self.metric, state.x), noise.child("draws")
        for draw in range(1, _DRAWS + 1):
            state, _ = try_step(first, energy, state, draws.at(draw))
            spread.add(state.x[finite_rows(state)])
        sampler = replace(sampler, metric=spread.metric(x.dtype))
        return _tune_trajectory(sampler, energy, state, noise.child("second"), self.tuning_steps - self.tuning_steps // 2)[0]

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        self._metric.check(x)
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        proposal, _, log_ratio, count = self.propose(energy, state, noise)
        state, info = choose(state, proposal, log_ratio, noise, stream=1)
        return state, replace(info, scalars={"leapfrogs": count})

    def mean_acceptance(self, acceptance: Tensor) -> float:
        """Returns the mean over steps of the harmonic mean over chains, which the tuning brings to its goal."""
        return (1 / (1 / acceptance.clamp_min(_LEAST)).nanmean(1)).nanmean().item()

    def propose(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Tensor, Tensor, int]:
        """Returns the end of a trajectory, the momentum there, the logarithm of the acceptance ratio, and the number of leapfrogs."""
        if self.step_size is None or self.trajectory is None:
            raise OptionError("ChEES has no step_size yet: give it with a trajectory, or let `sample` tune both.")
        ratio = min(max(self.trajectory / self.step_size, 1.0), self.max_leapfrogs)
        count = math.ceil(van_der_corput(noise.step) * ratio)
        return *propose(energy, state, normal(state.x, noise), self.step_size, count, self._metric), count

    @property
    def _metric(self) -> Metric:
        return self.metric if isinstance(self.metric, Metric) else IDENTITY


def _tune_trajectory(sampler: ChEES, energy: Energy, state: State, noise: Noise, steps: int) -> tuple[ChEES, State]:
    """Returns the sampler with a tuned step size and trajectory, and the state of the pilot chains after that.

    The time has no lower bound; only the number of leapfrogs has. A lower bound of one step, which is far too long at first, would lift the
    time over the first maximum of the criterion for good. The average of the time is not fed back, which would slow the ascent down.
    """
    first = find_first_length(lambda length: replace(sampler, step_size=length, trajectory=length), energy, state, noise)
    averaging, search = DualAveraging(first), noise.child("search")
    log_time = averaged = math.log(first)
    square = 0.0
    for step in range(1, steps + 1):
        length, h = averaging.length, van_der_corput(step)
        log_time = min(log_time, math.log(length * sampler.max_leapfrogs))
        trial = replace(sampler, step_size=length, trajectory=math.exp(log_time))
        proposal, momentum, log_ratio, _ = trial.propose(energy, state, search.at(step))
        log_ratio = torch.where(proposal.energy.isfinite() & log_ratio.isfinite(), log_ratio, -torch.inf)
        acceptance = log_ratio.clamp(max=0).exp()
        here = finite_rows(state)
        slope = criterion_gradient(sampler._metric, *(values[here] for values in (state.x, proposal.x, momentum, acceptance)))
        slope *= h * math.exp(log_time)
        if slope != 0.0:
            square = _FORGET * square + (1 - _FORGET) * slope**2
            log_time += min(max(_RATE * slope / math.sqrt(square / (1 - _FORGET**step)), -_MOST), _MOST)
        averaged += step**-0.5 * (log_time - averaged)
        averaging.add(sampler.acceptance - _rate(acceptance[here], proposal.energy[here]))
        state, _ = choose(state, proposal, log_ratio, search.at(step), stream=1)
    return replace(sampler, step_size=averaging.best, trajectory=math.exp(averaged)), state


def _rate(acceptance: Tensor, energies: Tensor) -> float:
    """Returns the harmonic mean of the acceptance, which few bad trajectories pull down.

    Trajectories that end outside the support, where it is zero for any step, count by the arithmetic mean of all, if that is lower.
    """
    inside = acceptance[energies.isfinite()].double().clamp_min(_LEAST)
    return min(1 / (1 / inside).mean().item(), acceptance.mean().item()) if len(inside) else 0.0


def criterion_gradient(metric: Metric, x: Tensor, end: Tensor, momentum: Tensor, acceptance: Tensor) -> float:
    """Returns the gradient of the criterion in log T, over h T; runaway trajectories have no weight."""
    good = acceptance > 0
    if not good.any():
        return 0.0
    weight = acceptance[good, None] / acceptance[good].sum()
    before, after = (flatten_points(metric.whiten(points)).to(weight) for points in (x, end[good]))
    before, after = (before - before.mean(0))[good], after - (weight * after).sum(0)
    change = after.square().sum(1) - before.square().sum(1)
    slope = (weight[:, 0] * change * (after * flatten_points(momentum[good]).to(weight)).sum(1)).sum().item()
    return slope if math.isfinite(slope) else 0.0
