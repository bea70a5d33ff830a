"""Replica exchange of discrete points: replicas at levels from equally likely states to the energy, which swap places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, cast

import torch
from torch import Tensor

from composable_energy import Energy, SamplingWarning
from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, repeated
from composable_energy_discrete.gibbs import Blocked, Gibbs, sweep
from composable_energy_discrete.neighbours import Blocks, visible
from composable_energy_mcmc import tempering as exchange
from composable_energy_mcmc.annealing.schedule import next_level, respace_levels
from composable_energy_mcmc.tempering import ROUNDS, SWEEPS, Replicas, swap_replicas

_KEPT, _MOST = 0.7, 64  # of the pilots from a level to the next, in the search for the first levels; and how many of these


@dataclass(frozen=True)
class _BlockedReplicas(Replicas):
    """A state with the blocks of sites that are drawn together."""

    blocks: Blocks = field(metadata={"per_chain": False, "saved": False})


@dataclass(frozen=True)
class DiscreteTempering(Sampler):
    r"""Replica exchange of discrete points, as `Tempering` of continuous ones: for modes that single changes do not join.

    Each chain has $K$ replicas at levels $0 = b_1 < \dots < b_K = 1$ of $b\, E$; its draws are those of the last replica. A step draws the
    first replica anew, from states that are equally likely, moves each other by sweeps of `Gibbs` at the temperature $1 / b$, and swaps
    neighbours with probability $\min(1, e^{(b_i - b_j)(E_i - E_j)})$. `trace.scalars` and the warning are those of `Tempering`.

    Args:
        levels: $K$, or the levels themselves; None takes as many as give a swap rate of .7, at most 32. Pilot chains tune them so that all
            neighbours have the same swap rate.
        sweeps: The sweeps between swaps.

    References:
        Replica Monte Carlo simulation of spin-glasses (Swendsen & Wang, 1986), https://doi.org/10.1103/PhysRevLett.57.2607
        Non-reversible parallel tempering (Syed et al., 2022), https://doi.org/10.1111/rssb.12464
    """

    levels: int | tuple[float, ...] | None = None
    sweeps: int = 1

    def __post_init__(self) -> None:
        check_integer("sweeps", self.sweeps)
        if not isinstance(self.levels, Sequence):
            check_integer("levels", self.levels, 2, optional=True)
            return
        object.__setattr__(self, "levels", tuple(map(float, self.levels)))
        given = cast(tuple[float, ...], self.levels)
        if given[:1] != (0.0,) or given[-1:] != (1.0,) or any(low >= high for low, high in pairwise(given)):
            raise OptionError(f"levels are a number, or numbers that rise from 0 to 1, got {given}.")

    @property
    def tuned(self) -> bool:
        return isinstance(self.levels, tuple)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        state, found = Gibbs().init(energy, energy.sites.scatter(noise.normal(x)), noise), [0.0]
        while found[-1] < 1 and len(found) < _MOST:
            log_ratio = -visible(state.energy).double()
            found.append(next_level(found[-1], log_ratio, _KEPT * (log_ratio > -torch.inf).double().mean().item()))
            state = sweep(energy, state, noise.at(len(found)), 1 / found[-1], self.sweeps)
        count = self.levels if isinstance(self.levels, int) else exchange.limit_levels(len(found))
        levels = respace_levels((*found[:-1], 1.0), count)
        for number in range(ROUNDS):
            trial, own = replace(self, levels=levels), noise.child(f"round {number}")
            replicas, swaps = trial.init(energy, state.x, own), torch.zeros(len(levels) - 1, dtype=torch.float64)
            for step in range(1, SWEEPS + 1):
                replicas, info = trial.step(energy, replicas, own.at(step))
                rates = [torch.as_tensor(info.scalars[f"swaps[{pair}]"]).nan_to_num() for pair in range(len(swaps))]
                swaps += torch.stack(rates).double().mean(1).cpu()
            rejections = exchange.cumulate_rejections(swaps / SWEEPS)
            last = self.levels is not None or number == ROUNDS - 1
            levels = respace_levels(levels, count := count if last else exchange.count_levels(rejections), rejections)
            state = replicas
        return replace(self, levels=levels), state.x

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> _BlockedReplicas:
        if not isinstance(self.levels, tuple):
            raise OptionError("DiscreteTempering has no levels yet: give some, or let `sample` tune them.")
        points, energies = x[:, None].repeat(1, len(self.levels), *[1] * (x.ndim - 1)), energy(x)
        many, born = energies[:, None].repeat(1, len(self.levels)), x.new_zeros(len(x), len(self.levels), dtype=torch.int64)
        return _BlockedReplicas(x, energies, torch.zeros_like(x), points, many, torch.zeros_like(points), born, Blocks(energy, x))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[_BlockedReplicas, Info]:
        before = cast(_BlockedReplicas, state)
        b = torch.tensor(self.levels, dtype=torch.promote_types(before.energy.dtype, torch.float32), device=before.x.device)
        first = energy.sites.scatter(noise.normal(before.x))
        points, energies, count = before.points[:, 1:].flatten(0, 1), before.energies[:, 1:].flatten(), len(b) - 1
        hot = Blocked(points, energies, points, before.blocks)
        temperatures = b[1:].reciprocal().repeat(len(first)).to(before.x.dtype)
        after = sweep(repeated(energy, len(first), count), hot, noise, temperatures, self.sweeps)
        points = torch.cat([first[:, None], after.x.unflatten(0, (len(first), count))], 1)
        energies = torch.cat([energy(first)[:, None], after.energy.view(len(first), count)], 1)
        born = torch.cat([before.born.amax(1, keepdim=True) + 1, before.born[:, 1:]], 1)  # this step, which a compiled one does not know
        moved, swaps = swap_replicas(replace(before, points=points, energies=energies, born=born), b, noise)
        return exchange.report(moved, swaps, None)

    def warn(self, state: State, exact: bool) -> Sequence[SamplingWarning]:
        return exchange.warn_of_trips(state, exact, "equally likely states")

    traits: ClassVar[Traits] = Traits(steps=300, states=("discrete",), gradients=0, warn=warn)
