"""Replica exchange: replicas at levels from a Gaussian to the energy, which swap places."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar, TypeVar, cast

import torch
from einops import rearrange
from torch import Tensor

from composable_energy import Energy, SamplingWarning
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy.registry import get
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, repeated
from composable_energy_mcmc.annealing.path import Gaussian, evaluate, hamiltonian_step
from composable_energy_mcmc.annealing.schedule import Schedule, Scheduled, tune_schedule
from composable_energy_mcmc.batch import REFUSED
from composable_energy_mcmc.hamiltonian import van_der_corput

ROUNDS, SWEEPS = 3, 24  # of the pilots, to give all pairs of neighbours the same swap rate
_REJECTION = 0.3  # of a swap between neighbours, which decides the number of levels
_MIN_LEVELS, _MAX_LEVELS = 4, 32
_OLD, _LEAST_STEPS = 0.1, 80  # of the chains, which bias a share by less; and steps, as for the other checks of convergence


@dataclass(frozen=True)
class Replicas(State):
    """A state of the replicas at the last level, with all replicas of each chain."""

    points: Tensor  # with shape (B, K, *), from the base to the energy; `x` is the last of them
    energies: Tensor  # E, with shape (B, K)
    grads: Tensor  # the gradients of E, with shape (B, K, *)
    born: Tensor  # the last step at which each was drawn from the base, with shape (B, K); 0 for a replica that descends from the start


R = TypeVar("R", bound=Replicas)


@dataclass(frozen=True)
class Tempering(Scheduled):
    r"""Replica exchange (Swendsen & Wang, 1986; Geyer, 1991): for modes too far apart for a chain to move between them.

    Each chain has $K$ replicas at levels $0 = b_1 < \dots < b_K = 1$ of $E_b = (1 - b)\, E_0 + b\, E$; its draws are those of the last
    replica. A step draws the first replica from the Gaussian $E_0$, moves each other by a trajectory of Hamiltonian Monte Carlo, and swaps
    neighbours, first the even pairs, then the odd ones, with probability $\min(1, e^{(b_i - b_j)(D_i - D_j)})$, $D = E - E_0$. It costs
    $(K - 1) L + 1$ gradients for a chain, evaluated for $K - 1$ points of each chain at a time. Chains are independent of each other.

    `trace.scalars` has `swaps`, the mean swap rate of neighbours, and `swaps[0]`, `swaps[1]`, ... of each pair of levels. A warning says if
    points still descend from start points, not from draws of $E_0$.

    The Gaussian, the levels and a step size for each are tuned on pilot chains, the levels so that all neighbours have the same swap rate.
    `trace.sampler` is the tuned sampler; pass it again to skip the tuning. Discrete points are drawn by `DiscreteTempering` with the same
    `levels`, and mixed ones by `Mixed`, whose continuous numbers this sampler moves.

    Args:
        levels: $K$; None takes as many as give a swap rate of .7.
        leapfrogs: The longest trajectory; $L$ runs through $1, \dots$ to it, as in `hmc`.
        mean: The mean of $E_0$, a number or a tensor with the shape of a point; None fits it together with `scale`.
        scale: The standard deviation of $E_0$, a number or a tensor with the shape of a point; it should reach all modes.
        acceptance: The mean acceptance of trajectories to tune for.
        schedule: The tuned levels and step sizes; None tunes them.

    References:
        Non-reversible parallel tempering (Syed et al., 2022), https://doi.org/10.1111/rssb.12464
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("levels", self.levels, 2, optional=True)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if energy.sites is not None:
            return self._of_sites(energy).tune(energy, x, noise)
        if self.schedule is not None:
            return self, x
        schedule, points = tune_schedule(energy, x, noise, self.mean, self.scale, self.leapfrogs, self.acceptance)
        schedule = schedule.respace(self.levels or limit_levels(len(schedule.levels)))
        for number in range(ROUNDS):
            schedule = self._equalize_levels(schedule, energy, points, noise.child(f"round {number}"), final=number == ROUNDS - 1)
        return replace(self, schedule=schedule), points

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> Replicas:
        schedule = self.tuned_schedule
        schedule.check(x)
        state, count = evaluate(energy, x), len(schedule.levels)
        points, grads = (values[:, None].expand(-1, count, *x.shape[1:]).contiguous() for values in (x, state.grad))
        energies = state.energy[:, None].expand(-1, count).contiguous()
        return Replicas(x, state.energy, state.grad, points, energies, grads, torch.zeros_like(energies, dtype=torch.int64))

    def step(self, energy: Energy, state: Replicas, noise: Noise) -> tuple[Replicas, Info]:
        base = self.tuned_schedule.base.to(state.x)
        b = torch.tensor(self.tuned_schedule.levels, dtype=state.energy.dtype, device=state.x.device)
        state, rates = self._move_replicas(energy, self.tuned_schedule.step_sizes, base, b, state, noise)
        state, swaps = swap_replicas(state, b, noise, base)
        return report(state, swaps, rates[:, -1])

    def warn(self, state: State, exact: bool) -> Sequence[SamplingWarning]:
        return warn_of_trips(state, exact, "the Gaussian", ", or the `mean` and `scale` of a Gaussian nearer to the density")

    traits: ClassVar[Traits] = Traits(steps=300, states=("continuous", "discrete", "mixed"), refused=REFUSED, warn=warn)

    def _of_sites(self, energy: Energy) -> Sampler:
        """Returns the sampler that takes its place on points with discrete numbers."""
        if energy.sites.mixed:
            return get("sampler", "mixed")(inner=self)
        if self != Tempering(levels=self.levels):
            raise OptionError(f"The points of {energy} are discrete, and tempering takes `levels` alone for these, got {self}.")
        return get("sampler", "discrete-tempering")(levels=self.levels)

    def _move_replicas(
        self, energy: Energy, step_sizes: Sequence[float], base: Gaussian, b: Tensor, state: Replicas, noise: Noise
    ) -> tuple[Replicas, Tensor]:
        """Draws first replicas from the base and moves the others at their levels; returns acceptances with shape $(B, K - 1)$ too."""
        chains, count = state.energies.shape
        z = noise.normal(state.points)
        first = evaluate(energy, base.from_standard(z[:, 0]))
        log_uniform = torch.special.log_ndtr(noise.normal(state.energies.to(b)[:, 1:], stream=1))
        x, energies, grads = (rearrange(v[:, 1:], "b k ... -> (b k) ...") for v in (state.points, state.energies, state.grads))
        rest, rates = hamiltonian_step(
            repeated(energy, chains, count - 1),
            base,
            State(x, energies, grads),
            b[1:].repeat(chains),
            torch.tensor(step_sizes[1:], dtype=b.dtype, device=b.device).repeat(chains),
            rearrange(z[:, 1:], "b k ... -> (b k) ..."),
            math.ceil(van_der_corput(noise.step) * self.leapfrogs),
            log_uniform.flatten(),
        )
        pairs = (first.x, rest.x), (first.energy, rest.energy), (first.grad, rest.grad)
        points, energies, grads = (torch.cat([one[:, None], rearrange(more, "(b k) ... -> b k ...", b=chains)], 1) for one, more in pairs)
        born = torch.cat([torch.full_like(state.born[:, :1], noise.step), state.born[:, 1:]], 1)
        return Replicas(rest.x, rest.energy, rest.grad, points, energies, grads, born), rates.view(chains, count - 1)

    def _equalize_levels(self, schedule: Schedule, energy: Energy, x: Tensor, noise: Noise, *, final: bool) -> Schedule:
        """Runs pilot chains, and returns a schedule with equal swap rates by their figures, and with better step sizes."""
        trial = replace(self, schedule=schedule)
        base, b = schedule.base.to(x), torch.tensor(schedule.levels, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        state, step_sizes = trial.init(energy, x, noise), list(schedule.step_sizes)
        swaps = torch.zeros(len(b) - 1, dtype=torch.float64, device=x.device)
        for sweep in range(1, SWEEPS + 1):
            own = noise.at(sweep)
            after, rates = trial._move_replicas(energy, step_sizes, base, b, state, own)
            state, swap_rates = swap_replicas(_keep_finite(after, state), b, own, base)
            swaps += swap_rates.nan_to_num().mean(0)
            gain = sweep**-0.5
            for level, rate in enumerate(rates.nan_to_num(0.0).mean(0).tolist(), start=1):
                step_sizes[level] *= math.exp(gain * (rate - self.acceptance))
        rejections = cumulate_rejections(swaps / SWEEPS)
        count = len(b) if self.levels is not None or final else count_levels(rejections)
        return replace(schedule, step_sizes=tuple(step_sizes)).respace(count, rejections)


def swap_replicas(state: R, b: Tensor, noise: Noise, base: Gaussian | None = None) -> tuple[R, Tensor]:
    """Swaps neighbouring replicas, the even pairs and then the odd ones; returns them, and swap probabilities with shape $(B, K - 1)$.
    Without a Gaussian the first level has the same energy everywhere."""
    chains, count = state.energies.shape
    differences = state.energies.to(b, copy=True)
    if base is not None:
        differences -= base.energy(state.points.flatten(0, 1)).view(chains, count).to(b)
    order = torch.arange(count, device=b.device).repeat(chains, 1)
    log_uniform = torch.special.log_ndtr(noise.normal(differences[:, 1:], stream=2))
    rates = torch.zeros_like(log_uniform)
    for first in (0, 1):
        low, high = slice(first, count - 1, 2), slice(first + 1, count, 2)
        log_ratio = (b[low] - b[high]) * (differences[:, low] - differences[:, high])
        rates[:, low] = log_ratio.clamp(max=0).exp()
        swap = log_uniform[:, low] < log_ratio
        for values in (differences, order):
            left, right = values[:, low].clone(), values[:, high].clone()
            values[:, low], values[:, high] = torch.where(swap, right, left), torch.where(swap, left, right)
    rows = torch.arange(chains, device=b.device)[:, None]
    points, energies, grads, born = (values[rows, order] for values in (state.points, state.energies, state.grads, state.born))
    last = {"x": points[:, -1], "energy": energies[:, -1], "grad": grads[:, -1]}
    return replace(state, **last, points=points, energies=energies, grads=grads, born=born), rates


def report(state: R, swaps: Tensor, acceptance: Tensor | None) -> tuple[R, Info]:
    """Returns the state and diagnostics of a step; a chain with a broken replica has an energy of NaN, so that the driver reports it."""
    broken = (state.energies.isnan() | (state.energies == -torch.inf)).any(1)
    scalars = {"swaps": swaps.mean(1), **{f"swaps[{pair}]": rate for pair, rate in enumerate(swaps.unbind(1))}}
    return replace(state, energy=torch.where(broken, torch.nan, state.energy)), Info(acceptance, scalars)


def warn_of_trips(state: State, exact: bool, base: str, way: str = "") -> Sequence[SamplingWarning]:
    """Warns if points still descend from start points."""
    born = cast(Replicas, state).born
    share = (born[:, -1] == 0).double().mean().item()
    if exact or share <= _OLD or born.max() < _LEAST_STEPS:
        return []
    seen = f"The points of {share:.0%} of the chains still descend from the start, not from draws of {base}: modes may"
    return [SamplingWarning("trips", f"{seen} have wrong shares.", f"Take more `steps`, more `levels`{way}.")]


def _keep_finite(after: Replicas, before: Replicas) -> Replicas:
    """Returns the chains of `after`, or of `before` where one became non-finite; the first replica may, as it never swaps."""
    rest = [values[:, 1:].reshape(len(values), -1) for values in (after.points, after.energies, after.grads)]
    finite = torch.stack([values.isfinite().all(1) for values in rest]).all(0) & ~after.energies[:, 0].isnan()
    pairs = (after.points, before.points), (after.energies, before.energies), (after.grads, before.grads)
    points, energies, grads = (torch.where(unsqueeze_to(finite, new), new, old) for new, old in pairs)
    return replace(after, points=points, energies=energies, grads=grads)


def cumulate_rejections(rates: Tensor) -> list[float]:
    """Returns for each level the sum of the rejection rates of the pairs below it, of mean swap rates with shape $(K - 1,)$."""
    return [0.0, *accumulate((1 - rates).clamp_min(1e-3).tolist())]


def count_levels(rejections: Sequence[float]) -> int:
    """Returns how many levels give neighbours a swap rate of .7."""
    return limit_levels(math.ceil(rejections[-1] / _REJECTION) + 1)


def limit_levels(count: int) -> int:
    """Returns a number of levels between the least and the most that tuning takes."""
    return max(_MIN_LEVELS, min(_MAX_LEVELS, count))
