"""Replica exchange: replicas at levels from a Gaussian to the energy, which trade places."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.sampling import Info, Noise, Sampler, State, repeated
from composable_energy_mcmc.hamiltonian import van_der_corput
from composable_energy_mcmc.ladder import Ladder, between, check_base, climbed, fitted
from composable_energy_mcmc.metropolis import REFUSED
from composable_energy_mcmc.options import fraction, whole
from composable_energy_mcmc.path import Base, follow, state_at

__all__ = ["Replicas", "Tempering"]

_ROUNDS, _SWEEPS = 3, 24  # of the pilots, to even out how often neighbours trade places
_REJECTED = 0.3  # of the swaps between neighbours, where nobody says how many levels there are
_FEWEST, _MOST = 4, 32
_KEPT = 0.9


@dataclass(frozen=True)
class Replicas(State):
    r"""A state of the replicas at the last level, with all of those that each chain has.

    Args:
        points: With shape $(B, K, *)$, from the base to the energy; `x` is the last of them.
        energies: Their $E$, with shape $(B, K)$.
        grads: Their $\nabla E$, with shape $(B, K, *)$.
    """

    points: Tensor
    energies: Tensor
    grads: Tensor


@dataclass(frozen=True)
class Tempering(Sampler):
    r"""Replica exchange (Swendsen & Wang, 1986; Geyer, 1991): for modes that lie too far apart for any chain to walk between.

    Each chain has $K$ replicas of its own at levels $0 = b_1 < \dots < b_K = 1$ of $E_b = (1 - b)\, E_0 + b\, E$, and draws are the last
    one's. A step draws the first replica from the Gaussian $E_0$, moves each other by a trajectory of Hamiltonian Monte Carlo, and lets
    neighbours trade places, first the even pairs, then the odd ones, with probability
    $\min(1, e^{(b_i - b_j)(D_i - D_j)})$, $D = E - E_0$. It costs $(K - 1) L + 1$ gradients for a chain, evaluated $K - 1$ points of each
    chain at a time. Chains do not meet.

    `trace.scalars` has `swaps`, the mean probability that neighbours trade places, and `swaps[0]`, `swaps[1]`, ... of each pair of levels.

    The Gaussian, the levels and a step size for each are tuned on pilot chains: the levels so that all neighbours trade equally often. The
    sampler that was tuned is `trace.sampler`: pass it again, and nothing is tuned twice.

    Args:
        levels: $K$; None takes as many as let seven of ten swaps happen.
        leapfrogs: The longest trajectory; $L$ runs through $1, \dots$ to it, as for `hmc`.
        mean: The mean of $E_0$, a number or a tensor with the shape of a point; None finds it with `scale`.
        scale: Its standard deviation, likewise; it should reach all modes.
        acceptance: The mean acceptance of trajectories to tune for.
        ladder: What was tuned.

    References:
        Non-reversible parallel tempering (Syed et al., 2022), https://doi.org/10.1111/rssb.12464
    """

    levels: int | None = None
    leapfrogs: int = 8
    mean: float | Tensor | None = None
    scale: float | Tensor | None = None
    acceptance: float = 0.8
    ladder: Ladder | None = None

    default_steps: ClassVar[int] = 300
    refused: ClassVar[Mapping[str, str]] = REFUSED

    def __post_init__(self) -> None:
        if self.levels is not None:
            whole("levels", self.levels, 2)
        whole("leapfrogs", self.leapfrogs)
        fraction("acceptance", self.acceptance)
        check_base(self.mean, self.scale)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> Sampler:
        if self.ladder is not None:
            return self
        if self.mean is None or self.scale is None:
            base = fitted(energy, x, noise.child("base"), self.leapfrogs)
        else:
            base = Base.of(self.mean, self.scale, x)
        levels, lengths, points = climbed(energy, base, x, noise.child("climb"), self.leapfrogs, self.acceptance, _KEPT)
        count = self.levels or max(_FEWEST, min(_MOST, len(levels)))
        logs = [math.log(length) for length in lengths]
        ladder = Ladder(base, tuple(between(levels, count)), tuple(math.exp(value) for value in between(logs, count)))
        for number in range(_ROUNDS):
            ladder = self._evened(ladder, energy, points, noise.child(f"round {number}"), final=number == _ROUNDS - 1)
        return replace(self, ladder=ladder)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> Replicas:
        ladder = self._ladder
        ladder.check(x)
        state, count = state_at(energy, x), len(ladder.levels)
        points, grads = (values[:, None].expand(-1, count, *x.shape[1:]).contiguous() for values in (x, state.grad))
        return Replicas(x, state.energy, state.grad, points, state.energy[:, None].expand(-1, count).contiguous(), grads)

    def step(self, energy: Energy, state: Replicas, noise: Noise) -> tuple[Replicas, Info]:
        ladder = self._ladder
        base = ladder.base.to(state.x)
        b = torch.tensor(ladder.levels, dtype=state.energy.dtype, device=state.x.device)
        moved, rates = self._moved(energy, ladder, base, b, state, noise)
        moved, swaps = _traded(moved, base, b, noise)
        broken = (moved.energies.isnan() | (moved.energies == -torch.inf)).any(1)
        scalars = {"swaps": swaps.mean(1), **{f"swaps[{pair}]": rate for pair, rate in enumerate(swaps.unbind(1))}}
        return replace(moved, energy=torch.where(broken, torch.nan, moved.energy)), Info(rates[:, -1], scalars)

    @property
    def _ladder(self) -> Ladder:
        if self.ladder is None:
            raise OptionError("Tempering has no ladder yet: let `sample` tune it.")
        return self.ladder

    def _moved(self, energy: Energy, ladder: Ladder, base: Base, b: Tensor, state: Replicas, noise: Noise) -> tuple[Replicas, Tensor]:
        """Moves all replicas at their levels, the first to a draw of its own; and how likely each other accepted, with shape (B, K - 1)."""
        chains, count = state.energies.shape
        z = noise.normal(state.points)
        first = state_at(energy, base.points(z[:, 0]))
        log_uniform = torch.special.log_ndtr(noise.normal(state.energies.to(b)[:, 1:], stream=1))
        sizes = torch.tensor(ladder.step_sizes[1:], dtype=b.dtype, device=b.device)
        rest, rates = follow(
            repeated(energy, chains, count - 1),
            base,
            State(state.points[:, 1:].flatten(0, 1), state.energies[:, 1:].flatten(), state.grads[:, 1:].flatten(0, 1)),
            b[1:].repeat(chains),
            sizes.repeat(chains),
            z[:, 1:].flatten(0, 1),
            math.ceil(van_der_corput(noise.step) * self.leapfrogs),
            log_uniform.flatten(),
        )
        shape = (chains, count - 1)
        return Replicas(
            *(rest.x, rest.energy, rest.grad),
            torch.cat([first.x[:, None], rest.x.view(*shape, *first.x.shape[1:])], 1),
            torch.cat([first.energy[:, None], rest.energy.view(shape)], 1),
            torch.cat([first.grad[:, None], rest.grad.view(*shape, *first.x.shape[1:])], 1),
        ), rates.view(shape)

    def _evened(self, ladder: Ladder, energy: Energy, x: Tensor, noise: Noise, *, final: bool) -> Ladder:
        """Runs the pilots, and returns a ladder on which their swaps would have been rejected equally often, with better step sizes."""
        trial = replace(self, ladder=ladder)
        base, b = ladder.base.to(x), torch.tensor(ladder.levels, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        state, lengths = trial.init(energy, x, noise), list(ladder.step_sizes)
        swaps = torch.zeros(len(b) - 1, dtype=torch.float64, device=x.device)
        for sweep in range(1, _SWEEPS + 1):
            own = noise.at(sweep)
            after, rates = trial._moved(energy, replace(ladder, step_sizes=tuple(lengths)), base, b, state, own)
            state, swapped = _traded(_mended(after, state), base, b, own)
            swaps += swapped.nan_to_num().mean(0)
            gain = sweep**-0.5
            lengths[1:] = [
                length * math.exp(gain * (rate - self.acceptance)) for length, rate in zip(lengths[1:], rates.mean(0).tolist(), strict=True)
            ]
        rejected = [0.0, *accumulate((1 - swaps / _SWEEPS).clamp_min(1e-3).tolist())]
        count = len(b)
        if self.levels is None and not final:
            count = max(_FEWEST, min(_MOST, math.ceil(rejected[-1] / _REJECTED) + 1))
        even = [rejected[-1] * i / (count - 1) for i in range(count)]
        logs = [math.log(length) for length in lengths]
        levels = [_interpolated(rejected, ladder.levels, place) for place in even]
        return replace(
            ladder,
            levels=(0.0, *levels[1:-1], 1.0),
            step_sizes=tuple(math.exp(_interpolated(rejected, logs, place)) for place in even),
        )


def _traded(state: Replicas, base: Base, b: Tensor, noise: Noise) -> tuple[Replicas, Tensor]:
    """Lets neighbours trade places; and with what probability each pair does, with shape (B, K - 1)."""
    chains, count = state.energies.shape
    gaps = state.energies.to(b) - base.energy(state.points.flatten(0, 1)).view(chains, count).to(b)
    order = torch.arange(count, device=b.device).repeat(chains, 1)
    log_uniform = torch.special.log_ndtr(noise.normal(gaps[:, 1:], stream=2))
    likely = torch.zeros_like(log_uniform)
    for first in (0, 1):
        low, high = slice(first, count - 1, 2), slice(first + 1, count, 2)
        log_ratio = (b[low] - b[high]) * (gaps[:, low] - gaps[:, high])
        likely[:, low] = log_ratio.clamp(max=0).exp()
        swap = log_uniform[:, low] < log_ratio
        for values in (gaps, order):
            left, right = values[:, low].clone(), values[:, high].clone()
            values[:, low], values[:, high] = torch.where(swap, right, left), torch.where(swap, left, right)
    rows = torch.arange(chains, device=b.device)[:, None]
    points, energies, grads = (values[rows, order] for values in (state.points, state.energies, state.grads))
    return Replicas(points[:, -1], energies[:, -1], grads[:, -1], points, energies, grads), likely


def _mended(after: Replicas, before: Replicas) -> Replicas:
    """Pilots of which a replica has left the finite stay where they were; at the first level it may, and is never traded."""
    rest = [values[:, 1:].reshape(len(values), -1) for values in (after.points, after.energies, after.grads)]
    good = torch.stack([values.isfinite().all(1) for values in rest]).all(0) & ~after.energies[:, 0].isnan()
    names = ("points", "energies", "grads")
    if good.all():
        return after
    fine = good.nonzero().squeeze(1)
    values = {name: getattr(before, name).clone() for name in names}
    for name in names:
        values[name][fine] = getattr(after, name)[fine]
    return replace(before, **values)


def _interpolated(places: list[float], values: tuple[float, ...] | list[float], at: float) -> float:
    """A value between those at rising places."""
    for i in range(1, len(places)):
        if at <= places[i] or i == len(places) - 1:
            share = (at - places[i - 1]) / (places[i] - places[i - 1])
            return values[i - 1] + min(share, 1.0) * (values[i] - values[i - 1])
    return values[-1]
