r"""Annealed importance sampling from a Gaussian to a density, and back, and chains that anneal one by one, without resampling.

All points of the first are in standard coordinates of the base, $x = \mu + S z$, so that the base is standard normal and a step size has no
unit. The second starts where it is told, and the weights of its paths may contradict the draws.

References:
    Annealed importance sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from composable_energy import Energy, SamplingWarning
from composable_energy.errors import CalibrationError, OptionError, SamplingDiverged
from composable_energy.sampling import Noise, State, has_rows
from composable_energy_mcmc.annealing.path import Gaussian, evaluate, geometric_energy, normal_energy
from composable_energy_mcmc.annealing.schedule import Pilots, Schedule, find_schedule
from composable_energy_mcmc.batch import select

_PILOTS, _LEVELS_PER_PILOT_LEVEL, _MIN_LEVELS = 256, 4, 16
_FIRST_STEP = 3  # the number of the pilots' first step, which selects its noise


@dataclass(frozen=True)
class Path:
    """A path from a Gaussian to a density."""

    energy: Energy
    base: Gaussian
    sampler: Any  # a dataclass with an option `step_size`, which accepts and rejects
    batch_size: int  # how many points are evaluated together
    moves: int  # how many steps of the sampler are taken at each level

    def energies(self, z: Tensor) -> Tensor:
        """Returns the energies of the density in standard coordinates, with shape $(B,)$."""
        return self.energy(self.base.from_standard(z)) - self.base.log_volume

    def log_density_ratio(self, z: Tensor) -> Tensor:
        """Returns $E_0 - E$, with shape $(B,)$ in float64; raises SamplingDiverged where it is not a number or positive infinity."""
        log_ratio = normal_energy(z).double() - torch.cat([self.energies(some) for some in z.split(self.batch_size)]).double()
        if (bad := log_ratio.isnan() | (log_ratio == torch.inf)).any():
            raise SamplingDiverged(
                f"{int(bad.sum())} of {len(bad)} points on the path to {self.energy} have an energy that is not a number: check the energy "
                "there, or give a `base` or `init` nearer to its density.",
                samples=self.base.from_standard(z),
                diverged=bad,
            )
        return log_ratio

    def move(self, z: Tensor, level: float, step_size: float, noise: Noise, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Takes the numbered steps of the sampler at a level; returns the points, and the mean acceptance of each, with shape $(B,)$."""
        sampler, density, points, acceptance = replace(self.sampler, step_size=step_size), _Level(self, level), [], []
        for rows in torch.arange(len(z), device="cpu").split(self.batch_size):
            first, last = int(rows[0]), int(rows[-1]) + 1
            own = noise.for_chains(range(first, last))
            state = sampler.init(density, z[first:last], own.at(steps[0]))
            rates = []
            for step in steps:
                state, info = sampler.step(density, state, own.at(step))
                if info.acceptance is None:
                    raise OptionError(f"{sampler} never rejects, so its levels are not those of the path; take 'hmc' or 'mala'.")
                rates.append(info.acceptance)
            points.append(state.x)
            acceptance.append(torch.stack(rates).mean(0))
        return torch.cat(points), torch.cat(acceptance)

    def log_weights(self, z: Tensor, schedule: Schedule, noise: Noise, *, reverse: bool = False) -> Tensor:
        r"""Returns the log weights of paths, with shape $(B,)$ in float64; the mean weight estimates $Z$, and $1 / Z$ in reverse.

        Both directions take the same steps at the same levels, in the opposite order.
        """
        levels, last = schedule.levels, len(schedule.levels) - 1
        total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        rises = range(1, last + 1)
        for j in reversed(rises) if reverse else rises:
            rise, log_ratio = levels[j] - levels[j - 1], self.log_density_ratio(z)
            if reverse and log_ratio.isinf().any():
                raise OptionError(f"{int(log_ratio.isinf().sum())} of {len(z)} draws have density 0 under {self.energy}: none of its.")
            total = total + (-rise if reverse else rise) * log_ratio
            at = j - 1 if reverse else j
            if 0 < at < last:  # at either end the weight is complete
                steps = range(at * self.moves, (at + 1) * self.moves)
                z, _ = self.move(z, levels[at], schedule.step_sizes[at], noise, steps[::-1] if reverse else steps)
        return total


def tune_path(path: Path, like: Tensor, noise: Noise, levels: int | None) -> Schedule:
    """Returns a schedule for a path, found by pilot points; by default with four levels for each that they needed, and at least 16."""
    noise, given = noise.for_chains(range(_PILOTS)), path.sampler.step_size
    pilots = _PathPilots(path, noise.normal(like.expand(_PILOTS, *like.shape).contiguous()), noise)
    schedule = find_schedule(pilots, path.base, noise, given)
    return schedule.respace((max(_MIN_LEVELS, _LEVELS_PER_PILOT_LEVEL * (len(schedule.levels) - 1)) if levels is None else levels) + 1)


class _Level(Energy):
    """The energy at a level of a path, in standard coordinates."""

    def __init__(self, path: Path, level: float) -> None:
        super().__init__()
        self.path, self.level = path, level

    def forward(self, z: Tensor) -> Tensor:
        return geometric_energy(self.level, normal_energy(z), self.path.energies(z))

    def __str__(self) -> str:
        return str(self.path.energy)


class _PathPilots(Pilots):
    """Pilot points of a path; they tune the step size unless the sampler has one."""

    def __init__(self, path: Path, points: Tensor, noise: Noise) -> None:
        self.path, self.points, self.noise = path, points, noise
        self.acceptance = getattr(path.sampler, "acceptance", 0.8) if path.sampler.step_size is None else None

    def log_density_ratio(self) -> Tensor:
        return self.path.log_density_ratio(self.points)

    def resample(self, rows: Tensor) -> None:
        self.points = self.points[rows]

    def move(self, level: float, step_size: float, number: int) -> float:
        self.points, rates = self.path.move(self.points, level, step_size, self.noise, (_FIRST_STEP + number,))
        return rates.nan_to_num().mean().item()

    def failure(self, reason: str) -> CalibrationError:
        return CalibrationError(
            f"The path from the base to {self.path.energy} cannot be followed: {reason}. Give a `base`, `init` or `draws` nearer to its "
            "density, or check that the energy has a lower bound."
        )


_CANDIDATES = 8
_FROZEN = 0.03  # a mean acceptance at the last level
_FEWEST, _ERRORS, _BIASED = 64, 4.5, 2.0  # chains, and the standard errors of a correlation and of the bias that it makes


@dataclass(frozen=True)
class Weighted(State):
    """A state with the log weights of paths, with shape $(B,)$. Draws that follow the density do not depend on them."""

    log_weight: Tensor


def log_density_ratio(state: State, base: Gaussian, temperature: float) -> Tensor:
    r"""Returns $E_0 - E / T$, with shape $(B,)$ in float64; $-\infty$ where the density is 0 or not a number."""
    return (base.energy(state.x).double() - state.energy.double() / temperature).nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def first_points(energy: Energy, like: Tensor, noise: Noise, base: Gaussian, level: float, temperature: float) -> Weighted:
    """Returns for each chain one of several draws of the Gaussian, by weights for the first level, so that few start at steep energies."""
    states, weights, scores = [], [], []
    for number in range(1, _CANDIDATES + 1):
        own = noise.at(number)
        states.append(evaluate(energy, base.from_standard(own.normal(like))))
        weights.append(level * log_density_ratio(states[-1], base, temperature))
        scores.append(weights[-1] - (-own.uniform(like, stream=1).double().log()).log())
    taken, best = states[0], torch.stack(scores).argmax(0)
    for number, state in enumerate(states[1:], start=1):
        taken = select(best == number, state, taken)
    return Weighted(taken.x, taken.energy, taken.grad, torch.stack(weights).logsumexp(0) - math.log(_CANDIDATES))


def warn_of_last_level(energy: Energy, state: State, rates: Tensor | None, log_weight: Tensor | None) -> None:
    """Warns if the corrector leaves chains where they are, or if the weights of paths depend on where the chains have ended."""
    if rates is not None and rates.mean() < _FROZEN:
        seen = f"The corrector accepts {rates.mean():.1%} of its steps at the last level, so the draws are those of a higher one."
        SamplingWarning("acceptance", seen, "Leave out its step size, so that it is tuned, or give a shorter one.").emit()
    if log_weight is None or len(log_weight) < _FEWEST or has_rows(energy):
        return
    weight = torch.softmax(log_weight, 0) * len(log_weight)
    correlation, spread = _dependence(state, weight).max().item(), weight.std().item()
    if correlation * math.sqrt(len(weight)) > _ERRORS and correlation * spread * math.sqrt(len(weight)) > _BIASED:
        seen = (
            f"Chains of `annealed` are not weighed against each other, and by the weights of their paths draws of {energy} are "
            f"{correlation * spread:.2f} standard deviations off along a coordinate."
        )
        SamplingWarning("weak", seen, "Use `tempering` or `smc`, or take more `levels` and `corrector_steps`.").emit()


def _dependence(state: State, weight: Tensor) -> Tensor:
    """Returns correlations of weights with bounded functions of the coordinates, their sizes, and the energy."""
    values = torch.cat([state.x.reshape(len(weight), -1), state.energy[:, None]], 1).double()
    values = values[:, values.isfinite().all(0)]
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype, device=values.device), 0)
    standard = (values - middle) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    bounded = torch.cat([standard.tanh(), (standard.square() / 2).tanh()], 1)
    bounded = bounded - bounded.mean(0)
    norms = bounded.norm(dim=0).clamp_min(torch.finfo(values.dtype).tiny)
    return (((weight - weight.mean()) / (weight - weight.mean()).norm()) @ bounded / norms).abs()
