"""The way of chains from a tail of the density to its bulk, where steps that were tuned in the bulk are rejected."""

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.sampling import Noise, State, energy_and_gradient, has_rows, normal
from composable_energy_mcmc.batch import finite_rows, select, sum_of_each
from composable_energy_mcmc.metric import IDENTITY, Metric

_STEPS = 200
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
    for step in range(1, _STEPS + 1):
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
    r"""Moves pilot chains with outlying energies, such as those stuck in a tail, to points of others.

    With the lowest energy $E_0$ and the lower quartile $E_1$, energies above $E_1 + 5\, (E_1 - E_0) + 8$ are outlying. The lowest quarter
    decides, because any number of chains may be stuck.
    """
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
