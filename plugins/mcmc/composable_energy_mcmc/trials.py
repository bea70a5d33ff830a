"""Trial steps of the pilot chains of `chees`, and what their acceptance says about the step size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.sampling import Noise, State
from composable_energy_mcmc.batch import finite_rows
from composable_energy_mcmc.metropolis import choose
from composable_energy_mcmc.tuning import mean_acceptance

if TYPE_CHECKING:
    from composable_energy_mcmc.chees import ChEES

_FINER, _LONG = 16, 15  # times as many leapfrogs; and a step whose trajectory has nearly its full length
_LEAST = 0.02  # which does not shorten steps
_JUMPS = 1 / 8  # of the loss by coarse steps: errors where a gradient jumps fall to 1/16, errors of smooth energies to 1/256


def take_step(sampler: ChEES, energy: Energy, state: State, noise: Noise) -> tuple[State, Tensor, int]:
    """Takes a step; returns the state, the acceptance with NaN outside the support, and the number of leapfrogs.

    Chains that would become non-finite stay, as if rejected.
    """
    proposal, _, log_ratio, count = sampler.propose(energy, state, noise)
    log_ratio = torch.where(finite_rows(proposal) & log_ratio.isfinite(), log_ratio, -torch.inf)
    state, info = choose(state, proposal, log_ratio, noise, stream=1)
    rates = log_ratio.clamp(max=0).exp() if info.acceptance is None else info.acceptance
    return state, torch.where(proposal.energy.isfinite(), rates, torch.nan), count


def mean_rate(rates: Tensor, jumps: bool) -> float:
    """Returns the mean acceptance to tune for.

    Trajectories that end outside the support, where it is zero for any step, count by the arithmetic mean of all, if that is lower. So do
    all trajectories of an energy that jumps: few of them are rejected for any step, and steps that avoid this would be far too short.
    """
    if rates.isnan().all():
        return 0.0
    arithmetic = rates.nan_to_num(0.0).mean().item()
    return arithmetic if jumps else min(mean_acceptance(rates).item(), arithmetic)


def lost_to_jumps(coarse: ChEES, energy: Energy, state: State, noise: Noise) -> float:
    """Returns the mean acceptance that trajectories lose for any step size, because the energy jumps; 0 if short steps lose much less.

    Trajectories that end outside the support do not count.

    Args:
        coarse: The sampler with a step size that rejects about half of the trajectories of that length.
        energy: The energy.
        state: The pilot chains.
        noise: Their noise.
    """
    here, fine = finite_rows(state), replace(coarse, step_size=(coarse.step_size or 0.0) / _FINER)
    loss, rest = (1 - take_step(some, energy, state, noise.at(_LONG))[1][here].nanmean().item() for some in (coarse, fine))
    return rest if rest > max(_JUMPS * loss, _LEAST) else 0.0
