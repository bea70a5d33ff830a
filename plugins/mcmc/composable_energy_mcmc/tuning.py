"""Moves pilot chains from the tails to the bulk of a density, and tunes a step size there by dual averaging of the acceptance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.sampling import Noise, Sampler, State, energy_and_gradient, has_rows, normal
from composable_energy_mcmc.batch import choose, finite_rows, select, sum_of_each
from composable_energy_mcmc.metric import IDENTITY, Metric

_APPROACH_STEPS = 200
_LONGER, _SHORTER = 1.25, 0.5  # in balance at an acceptance of three quarters
_PROGRESS, _PATIENCE = 0.5, 10  # a chain that loses less energy in ten steps has arrived
_RANGES, _MARGIN = 5.0, 8.0  # above the lower quartile: ranges of the lowest quarter, and nats


def approach(
    energy: Energy, x: Tensor, noise: Noise, *, level: float | None = None, metric: Metric = IDENTITY, step_size: float = 0.1
) -> tuple[State, Tensor]:
    """Moves points to where their energies stop falling, by Metropolis-adjusted Langevin steps with a step size for each chain.

    Accepted steps lengthen the following ones, rejected steps shorten them. Noise and acceptance keep a chain from the narrow modes of a
    density that carry no probability, which pure descent would find. Chains arrive where their energy is at most `level`; without one each
    stops where its energy falls no more. The first step size is in units of whitened points. At most 200 gradients are evaluated.
    """
    state = State(x, *energy_and_gradient(energy, x))
    lengths, lowest = torch.full_like(state.energy, step_size), state.energy
    since = torch.zeros_like(lengths)
    moving = finite_rows(state) if level is None else finite_rows(state) & (state.energy > level)
    for step in range(1, _APPROACH_STEPS + 1):
        if not moving.any():
            break
        proposal, log_ratio = _propose(energy, state, noise.at(step), unsqueeze_to(lengths, x), metric)
        accepted = moving & finite_rows(proposal) & (noise.at(step).uniform(x, stream=1).log() < log_ratio)
        state = select(accepted, proposal, state)
        lengths = lengths * torch.where(accepted, lengths.new_full((), _LONGER), lengths.new_full((), _SHORTER))
        since = torch.where(state.energy < lowest - _PROGRESS, 0.0, since + 1)
        lowest = torch.where(since == 0, state.energy, lowest)
        moving = moving & ((since < _PATIENCE) if level is None else (state.energy > level))
    return state, finite_rows(state) & ((since >= _PATIENCE) if level is None else (state.energy <= level))


def redraw_outliers(energy: Energy, state: State, noise: Noise) -> State:
    r"""Moves pilot chains with outlying energies, such as those stuck in a tail, to points of others. With the lowest energy $E_0$ and the
    lower quartile $E_1$, energies above $E_1 + 5\, (E_1 - E_0) + 8$ are outlying. The lowest quarter decides, because any number of chains
    may be stuck."""
    here = finite_rows(state)
    if has_rows(energy) or not here.any():  # energies of chains with conditions of their own do not compare
        return state
    low, quarter = state.energy[here].double().quantile(torch.tensor([0.0, 0.25], dtype=torch.float64, device=state.x.device))
    good = here & (state.energy <= quarter + _RANGES * (quarter - low) + _MARGIN)
    if good.all():
        return state
    places = good.nonzero().squeeze(1)
    chosen = places[(noise.uniform(state.x, stream=2) * len(places)).long().clamp_max(len(places) - 1)]
    return select(good, state, State(state.x[chosen], state.energy[chosen], state.grad[chosen]))


def _propose(energy: Energy, state: State, noise: Noise, lengths: Tensor, metric: Metric) -> tuple[State, Tensor]:
    """Returns the end of one leapfrog step of each chain, and the logarithm of its acceptance ratio, with shape $(B,)$."""
    momentum = normal(state.x, noise)
    half = momentum - lengths / 2 * metric.whiten_gradient(state.grad)
    x = state.x + metric.unwhiten(lengths * half)
    proposal = State(x, *energy_and_gradient(energy, x))
    end = half - lengths / 2 * metric.whiten_gradient(proposal.grad)
    return proposal, state.energy - proposal.energy + sum_of_each(momentum.square() - end.square()) / 2


if TYPE_CHECKING:
    from composable_energy_mcmc.hamiltonian import ChEES

_GAMMA, _OFFSET, _KAPPA = 0.05, 10.0, 0.75  # Hoffman & Gelman (2014)
_TRIALS = 60
_GRID = 1024  # lengths in a factor of e
_FINER, _LONG = 16, 15  # times as many leapfrogs; and a step whose trajectory has nearly its full length
_SMALL = 0.02  # a loss by jumps that does not shorten steps
_JUMPS = 1 / 8  # of the loss by coarse steps: errors where a gradient jumps fall to 1/16, errors of smooth energies to 1/256
_LEAST = 0.05  # the smallest acceptance in a harmonic mean, or one bad trajectory would decide


def tune_step_size(
    make: Callable[[float], Sampler], energy: Energy, x: Tensor, noise: Noise, acceptance: float, steps: int
) -> tuple[Sampler, Tensor]:
    r"""Returns a sampler whose mean acceptance on pilot chains is a target, and the last points of these chains. The chains leave the tails
    first. Then the logarithm of the length $\varepsilon$ of a step follows the dual averaging of Hoffman & Gelman (2014), with the mean
    acceptance over all pilot chains as its signal, so that a short run will do."""
    state, _ = approach(energy, x, noise.child("approach"))
    state = redraw_outliers(energy, state, noise.child("redraw"))
    averaging = DualAveraging(find_first_length(make, energy, state, noise))
    for step in range(1, steps + 1):
        state, rate = try_step(make(averaging.length), energy, state, noise.at(_TRIALS + step))
        averaging.add(acceptance - rate)
    return make(averaging.best), state.x


class DualAveraging:
    r"""Dual averaging of the logarithm of a length, to bring the mean of an error that falls with it to zero (Hoffman & Gelman, 2014)."""

    def __init__(self, first: float) -> None:
        self.length = first
        self.centre, self.averaged, self.error, self.steps = math.log(10 * first), 0.0, 0.0, 0

    def add(self, error: float) -> None:
        """Updates the length by an error, the target less the acceptance at the last length."""
        self.steps += 1
        weight = 1 / (self.steps + _OFFSET)
        self.error = (1 - weight) * self.error + weight * error
        log_length = self.centre - math.sqrt(self.steps) / _GAMMA * self.error
        forget = self.steps**-_KAPPA
        self.averaged = forget * log_length + (1 - forget) * self.averaged
        self.length = _exp(log_length)

    @property
    def best(self) -> float:
        """The average of the lengths, weighted towards the last."""
        return _exp(self.averaged)


def _exp(log_length: float) -> float:
    """Returns a length on a grid of .1 %: else rounding would grow from step to step, by way of the acceptance."""
    return math.exp(min(max(round(log_length * _GRID) / _GRID, -60.0), 34.0))


def find_first_length(make: Callable[[float], Sampler], energy: Energy, state: State, noise: Noise) -> float:
    """Returns a length with an acceptance of one half at the start, to a factor of two."""
    length = 0.1
    up = try_step(make(length), energy, state, noise.at(1))[1] > 0.5
    for trial in range(2, _TRIALS):
        following = length * 2 if up else length / 2
        if (try_step(make(following), energy, state, noise.at(trial))[1] > 0.5) != up:
            return length if up else following
        length = following
    return length


def try_step(sampler: Sampler, energy: Energy, state: State, noise: Noise) -> tuple[State, float]:
    """Takes a step, and returns the next state with the mean acceptance; chains that become non-finite stay, as if rejected. The mean is
    over chains that start from a finite state: one outside the support may never move, whatever the step."""
    after, info = sampler.step(energy, state, noise)
    finite, counted = finite_rows(after), finite_rows(state)
    rate = torch.ones_like(after.energy) if info.acceptance is None else info.acceptance
    rate = torch.where(finite, rate, 0.0).nan_to_num(0.0)[counted].mean().item() if counted.any() else 0.0
    return select(finite, after, state), rate


def mean_acceptance(rates: Tensor) -> Tensor:
    r"""Returns the mean over chains of acceptances with shape $(*, C)$, less if few chains have a much lower one; NaN does not count.

    Where errors of the energy are normal, with the same variance $s^2$ for all chains, acceptances have the arithmetic mean $a = 2
    \Phi(-s / 2)$ and the harmonic mean $h_0 = 1 / (a / 2 + e^{s^2} \Phi(3 s / 2))$. The result is $a \min(1, h / h_0)^2$ with the harmonic
    mean $h$ of the rates. So it is $a$ for energies that are as smooth everywhere, however many coordinates they have, and less in the
    narrow parts of curved energies, where steps that suit most chains keep others in place.
    """
    rates = rates.double()
    mean, harmonic = rates.nanmean(-1), 1 / (1 / rates.clamp_min(_LEAST)).nanmean(-1)
    s = -2 * torch.special.ndtri(mean.clamp_min(0.1) / 2)
    normal = 1 / (mean / 2 + s.square().exp() * torch.special.ndtr(1.5 * s))
    return mean * (harmonic / normal).clamp_max(1).square()


def take_step(sampler: ChEES, energy: Energy, state: State, noise: Noise) -> tuple[State, Tensor, int]:
    """Takes a step; returns the state, the acceptance, NaN outside the support, and the leapfrogs. Chains that run away stay."""
    proposal, log_ratio, count = sampler.propose(energy, state, noise)
    log_ratio = torch.where(finite_rows(proposal) & log_ratio.isfinite(), log_ratio, -torch.inf)
    state, info = choose(state, proposal, log_ratio, noise)
    rates = log_ratio.clamp(max=0).exp() if info.acceptance is None else info.acceptance
    return state, torch.where(proposal.energy.isfinite(), rates, torch.nan), count


def mean_rate(rates: Tensor, jumps: bool) -> float:
    """Returns the mean acceptance to tune for. Trajectories that end outside the support, where it is zero for any step, count by the
    arithmetic mean of all, if that is lower. So do all trajectories of an energy that jumps: few of them are rejected for any step, and
    steps that avoid this would be far too short."""
    if rates.isnan().all():
        return 0.0
    arithmetic = rates.nan_to_num(0.0).mean().item()
    return arithmetic if jumps else min(mean_acceptance(rates).item(), arithmetic)


def lost_to_jumps(coarse: ChEES, energy: Energy, state: State, noise: Noise) -> float:
    """Returns the mean acceptance that all step sizes lose to jumps of the energy within the support; 0 if short steps lose much less."""
    here, fine = finite_rows(state), replace(coarse, step_size=(coarse.step_size or 0.0) / _FINER)
    loss, rest = (1 - take_step(some, energy, state, noise.at(_LONG))[1][here].nanmean().item() for some in (coarse, fine))
    return rest if rest > max(_JUMPS * loss, _SMALL) else 0.0
