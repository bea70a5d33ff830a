"""Hamiltonian Monte Carlo, and ChEES, which tunes all its options with many chains together."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient, normal
from composable_energy_mcmc.batch import REFUSED, bound_kicks, choose, sum_of_each
from composable_energy_mcmc.metric import IDENTITY, Metric
from composable_energy_mcmc.tuning import approach, mean_acceptance, redraw_outliers, take_step, tune_step_size
from composable_energy_mcmc.windows import adapt_metric, choose_trajectory

RUNAWAY = 1000.0  # an error of the energy that no trajectory recovers from


@dataclass(frozen=True)
class HMC(Sampler):
    r"""Hamiltonian Monte Carlo (Duane et al., 1987; Neal, 2011): leapfrog trajectories with fresh momentum, accepted or rejected.

    A trajectory of $L$ leapfrog steps costs $L$ gradients. $L$ runs through $1, \dots, L_\text{max}$ in the order of van der Corput's
    sequence, the same for all chains, because a fixed length can resonate with the energy, so that chains return to where they were.
    Kicks $\varepsilon \nabla E$ are shortened to a norm of at most $3 + 1.5\, d^{1/3}$, so that chains leave walls thinner than a step.

    Args:
        step_size: $\varepsilon > 0$, in units of $x$; None tunes it on pilot chains.
        leapfrogs: $L_\text{max}$, or $L$ itself without jitter.
        jitter: Whether the length of trajectories varies.
        acceptance: The mean acceptance to tune for.
        tuning_steps: The number of steps of the pilot chains.

    References:
        MCMC using Hamiltonian dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901
    """

    step_size: float | None = None
    leapfrogs: int = 16
    jitter: bool = True
    acceptance: float = 0.8
    tuning_steps: int = 100

    traits: ClassVar[Traits] = Traits(steps=100, refused=REFUSED)

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0, optional=True)
        check_integer("leapfrogs", self.leapfrogs)
        check_flag("jitter", self.jitter)
        check_number("acceptance", self.acceptance, above=0, below=1)
        check_integer("tuning_steps", self.tuning_steps)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.step_size is not None:
            return self, x
        return tune_step_size(lambda length: replace(self, step_size=length), energy, x, noise, self.acceptance, self.tuning_steps)

    def approach(self, energy: Energy, x: Tensor, noise: Noise, level: float | None) -> tuple[Tensor, Tensor]:
        state, arrived = approach(energy, x, noise, level=level, step_size=self.step_size or 0.1)
        return state.x, arrived

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if self.step_size is None:
            raise OptionError("HMC has no step_size yet: give one, or let `sample` tune it.")
        count = math.ceil(van_der_corput(noise.step) * self.leapfrogs) if self.jitter else self.leapfrogs
        proposal, log_ratio = propose(energy, state, normal(state.x, noise), self.step_size, count)
        return choose(state, proposal, log_ratio, noise, count)


def propose(
    energy: Energy, state: State, momentum: Tensor, step_size: float, steps: int, metric: Metric = IDENTITY
) -> tuple[State, Tensor]:
    """Follows a trajectory; returns its end, and the logarithm of the acceptance ratio, with shape $(B,)$."""
    before = state.energy + sum_of_each(momentum.square()) / 2
    proposal, momentum, highest = leapfrog(energy, state, momentum, step_size, steps, metric)
    log_ratio = before - proposal.energy - sum_of_each(momentum.square()) / 2
    runaway = (highest > before + RUNAWAY) & ~log_ratio.isfinite()  # the step was too long; the energy need not be broken
    return proposal, torch.where(runaway, -torch.inf, log_ratio)


def leapfrog(
    energy: Energy, state: State, momentum: Tensor, step_size: float, steps: int, metric: Metric = IDENTITY
) -> tuple[State, Tensor, Tensor]:
    """Integrates Hamilton's equations by the leapfrog scheme; returns the end, the momentum there, and the highest energy on the way."""
    length = torch.full((), step_size, dtype=torch.promote_types(state.x.dtype, torch.float32), device=state.x.device)
    kick = bound_kicks(metric.whiten_gradient(state.grad) * length)
    momentum = torch.sub(momentum, kick, alpha=0.5)
    x, energies, grad, highest = state.x, state.energy, state.grad, state.energy
    for _ in range(steps):
        x = torch.addcmul(x, metric.unwhiten(momentum), length)
        energies, grad = energy_and_gradient(energy, x)
        kick = bound_kicks(metric.whiten_gradient(grad) * length)
        momentum, highest = momentum - kick, torch.fmax(highest, energies)
    return State(x, energies, grad), torch.add(momentum, kick, alpha=0.5), highest


def van_der_corput(number: int) -> float:
    """Returns an element of van der Corput's sequence in base 2, counted from 1: 1/2, 1/4, 3/4, 1/8, ..."""
    return int(f"{number:b}"[::-1], 2) / (1 << number.bit_length())


_ROUNDING = 1e-6  # of a ratio: without it the last bit of a step size could add a leapfrog


@dataclass(frozen=True)
class ChEES(Sampler):
    r"""Hamiltonian Monte Carlo tuned on pilot chains, after ChEES-HMC (Hoffman, Radul & Sountsov, 2021).

    A trajectory takes $L = \lceil h\, T / \varepsilon \rceil$ leapfrog steps, and as many gradients; $h$ runs through the sequence of
    van der Corput, the same for all chains. Step size $\varepsilon$, time $T$ and metric $S$ are tuned on separate pilot chains:

    - The pilots first leave the tails, each with a step size of its own. Chains of the call that start in a tail do the same.
    - In windows of 32 steps $\varepsilon$ follows dual averaging, and $S$ is estimated from the points of all pilots. The windows end when
      energies and scales stay the same, and a dense $S$ comes from 30 points for each coordinate.
    - $T$ is the one of $2 \varepsilon, 4 \varepsilon, \dots$, or three quarters or one and a half of it, with the fewest gradients for an
      effective draw: $\bar L \max_j \tau_j$ with the correlation times $\tau_j$ of coordinates, of the principal directions of the means
      of pilots over a window, in which they are slow, and of their squares. ChEES ascends the gradient of a criterion of the distance from
      the mean instead, which finds the nearest maximum and does not see motion around a ring.
    - Chains take `warmup` steps before the first one that counts: twice the longest $\tau_j$.

    `trace.sampler` is the tuned sampler; pass it again to skip the tuning.

    Args:
        step_size: $\varepsilon > 0$, in units of whitened points; None tunes it.
        trajectory: $T > 0$, in units of whitened points; None tunes it.
        metric: `"identity"`; `"diagonal"` or `"dense"`, estimated from the pooled draws of the pilot chains; `"auto"`, which is dense where
            that pays and diagonal elsewhere, and the identity beside a `step_size`; or a metric that was tuned before.
        acceptance: The mean acceptance to tune for, `mean_acceptance`. It is below the arithmetic mean where few trajectories are much
            worse than others: there, in a narrow part of a curved energy, chains would stay for long. Where the energy jumps, it is the
            share that is accepted of the trajectories that the jumps leave.
        max_leapfrogs: The largest $L$. It is needed where the criterion grows without bound, as on some funnels and bananas.
        tuning_steps: The largest number of steps of the pilot chains for $\varepsilon$ and $S$.
        warmup: The number of steps of each chain before the first one; None tunes it with `step_size` or `trajectory`.

    References:
        An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte Carlo (Hoffman et al., 2021),
        https://proceedings.mlr.press/v130/hoffman21a.html
    """

    step_size: float | None = None
    trajectory: float | None = None
    metric: Literal["auto", "identity", "diagonal", "dense"] | Metric = "auto"
    acceptance: float = 0.75
    max_leapfrogs: int = 64
    tuning_steps: int = 320
    warmup: int | None = None

    traits: ClassVar[Traits] = Traits(steps=100, refused=REFUSED, from_pilots=True, mean_acceptance=mean_acceptance)

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0, optional=True)
        check_number("trajectory", self.trajectory, above=0, optional=True)
        if not isinstance(self.metric, Metric) and self.metric not in ("auto", "identity", "diagonal", "dense"):
            raise OptionError(f"metric must be 'auto', 'identity', 'diagonal', 'dense' or one that was tuned, got {self.metric!r}.")
        if self.step_size is not None and self.metric in ("diagonal", "dense"):
            raise OptionError(f"metric={self.metric!r} is estimated while step_size is tuned, in its units: leave step_size out.")
        check_number("acceptance", self.acceptance, above=0, below=1)
        check_integer("max_leapfrogs", self.max_leapfrogs)
        check_integer("tuning_steps", self.tuning_steps, 2)
        check_integer("warmup", self.warmup, 0, optional=True)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.step_size is not None and self.trajectory is not None:
            return self, x
        state, _ = approach(energy, x, noise.child("approach"), metric=self.whitening)
        state = redraw_outliers(energy, state, noise.child("redraw"))
        sampler, state, slow = adapt_metric(self, energy, state, noise.child("metric"))
        sampler, state = choose_trajectory(sampler, energy, state, noise.child("trajectory"), slow)
        return sampler, state.x

    def approach(self, energy: Energy, x: Tensor, noise: Noise, level: float | None) -> tuple[Tensor, Tensor]:
        state, arrived = approach(energy, x, noise, level=level, metric=self.whitening)
        own = noise.child("warmup")
        for step in range(1, (self.warmup or 0) + 1):
            state, _, _ = take_step(self, energy, state, own.at(step))
        return state.x, arrived

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        self.whitening.check(x)
        return State(x, *energy.with_gradient(x))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        proposal, log_ratio, count = self.propose(energy, state, noise)
        return choose(state, proposal, log_ratio, noise, count)

    def propose(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Tensor, int]:
        """Returns the end of a trajectory, the logarithm of the acceptance ratio, and the number of leapfrogs."""
        if self.step_size is None or self.trajectory is None:
            raise OptionError("ChEES has no step_size yet, or no trajectory: give both, or let `sample` tune what is missing.")
        ratio = min(max(self.trajectory / self.step_size, 1.0), self.max_leapfrogs)
        count = math.ceil(van_der_corput(noise.step) * ratio - _ROUNDING)
        return *propose(energy, state, normal(state.x, noise), self.step_size, count, self.whitening), count

    @property
    def whitening(self) -> Metric:
        """The metric, or the identity as long as none is tuned."""
        return self.metric if isinstance(self.metric, Metric) else IDENTITY
