r"""The path $E_b = (1 - b)\, E_0 + b\, E$ from a Gaussian $E_0$ at $b = 0$ to an energy $E$ at $b = 1$, and steps at its levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import ShapeError
from composable_energy.sampling import State, energy_and_gradient
from composable_energy_mcmc.metric import same_tensor
from composable_energy_mcmc.metropolis import check_precision, sum_of_each

__all__ = ["Base", "chosen", "follow", "resampled", "state_at"]

_RUNAWAY = 1000.0  # an error of the energy after which a trajectory is lost anyway


class Base:
    r"""The Gaussian where a ladder begins: the law of $\mu + s z$ with standard normal $z$, coordinate by coordinate.

    Args:
        mean: $\mu$, with the shape of a point.
        scale: $s > 0$, likewise.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.scale = mean, scale
        self._log_volume = float(scale.double().log().sum()) + scale.numel() * math.log(2 * math.pi) / 2

    @classmethod
    def of(cls, mean: float | Tensor, scale: float | Tensor, like: Tensor) -> Base:
        """Returns the base that options say, for points with shape $(B, *)$.

        Raises:
            ShapeError: The options do not fit the points.
        """
        try:
            return cls(*(torch.as_tensor(value).to(like).expand(like.shape[1:]) for value in (mean, scale)))
        except RuntimeError:
            shapes = [tuple(torch.as_tensor(value).shape) for value in (mean, scale)]
            raise ShapeError(f"mean and scale have shapes {shapes[0]} and {shapes[1]}, the points have {tuple(like.shape[1:])}.") from None

    def to(self, like: Tensor) -> Base:
        """Returns it with the dtype and device of some points."""
        same = self.mean.dtype == like.dtype and self.mean.device == like.device
        return self if same else Base(self.mean.to(like), self.scale.to(like))

    def points(self, z: Tensor) -> Tensor:
        """Returns the points of standard normal ones, with shape $(B, *)$."""
        return self.mean + self.scale * z

    def energy(self, x: Tensor) -> Tensor:
        """Returns $E_0$, the negative logarithm of its density, with shape $(B,)$."""
        return sum_of_each(((x - self.mean) / self.scale).square()) / 2 + self._log_volume

    def gradient(self, x: Tensor) -> Tensor:
        r"""Returns $\nabla E_0$, with shape $(B, *)$."""
        return (x - self.mean) / self.scale.square()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Base):
            return NotImplemented
        return same_tensor(self.mean, other.mean) and same_tensor(self.scale, other.scale)

    def __hash__(self) -> int:
        return hash(self.mean.shape)


def state_at(energy: Energy, x: Tensor) -> State:
    """Returns points with the energies and gradients of $E$; where the energy is infinite nothing pulls.

    Raises:
        DtypeError: Points or energies are too coarse to accept by.
    """
    energies, grad = energy_and_gradient(energy, x)
    state = State(x, energies, torch.where(_wide(energies == torch.inf, x), 0.0, grad))
    check_precision(state)
    return state


def follow(
    energy: Energy, base: Base, state: State, levels: Tensor, step_sizes: Tensor, momentum: Tensor, count: int, log_uniform: Tensor
) -> tuple[State, Tensor]:
    r"""Takes a step of Hamiltonian Monte Carlo with each point at a level of its own; one gradient of $E$ a leapfrog step.

    As elsewhere, infinite energies and lost trajectories are rejected, and what is not a number is accepted, so that it is found.

    Args:
        energy: $E$.
        base: $E_0$.
        state: The points, with shape $(N, *)$, and their $E$ and $\nabla E$.
        levels: $b$, with shape $(N,)$.
        step_sizes: With shape $(N,)$, in units of the base's scale.
        momentum: Standard normal numbers, with shape $(N, *)$.
        count: How many leapfrog steps.
        log_uniform: Logarithms of uniform numbers, with shape $(N,)$.

    Returns:
        The next points with their $E$ and $\nabla E$, and the probability with which each proposal was accepted, with shape $(N,)$.
    """
    b, units = _wide(levels, state.x), _wide(step_sizes, state.x) * base.scale

    def kick(here: State) -> Tensor:
        return ((1 - b) * base.gradient(here.x) + b * here.grad).mul_(units)

    def height(here: State, momentum: Tensor) -> Tensor:
        return _leveled(base.energy(here.x), here.energy, levels) + sum_of_each(momentum.square()) / 2

    before, here, highest = height(state, momentum), state, state.energy
    momentum = torch.sub(momentum, kick(here), alpha=0.5)
    for step in range(1, count + 1):
        x = torch.addcmul(here.x, units, momentum)
        here = State(x, *energy_and_gradient(energy, x))
        momentum.sub_(kick(here), alpha=1.0 if step < count else 0.5)
        highest = torch.fmax(highest, here.energy)
    log_ratio = before - height(here, momentum)
    lost = (here.energy == torch.inf) | ((levels * highest > before + _RUNAWAY) & ~log_ratio.isfinite())
    log_ratio = torch.where(lost, -torch.inf, log_ratio)
    return chosen(~(log_ratio <= log_uniform), here, state), log_ratio.clamp(max=0).exp().nan_to_num_(0.0)


def _leveled(at_base: Tensor, at_top: Tensor, levels: Tensor | float) -> Tensor:
    """Returns $(1 - b) E_0 + b E$; at the ends the other one does not matter, even if it is infinite."""
    levels = torch.as_tensor(levels, device=at_top.device)
    return torch.where(levels == 1, at_top, torch.where(levels == 0, at_base, (1 - levels) * at_base + levels * at_top))


def chosen(first: Tensor, one: State, other: State) -> State:
    """Returns the rows of one state where the first is chosen, and those of the other elsewhere."""
    wide = _wide(first, one.x)
    return State(torch.where(wide, one.x, other.x), torch.where(first, one.energy, other.energy), torch.where(wide, one.grad, other.grad))


def resampled(log_weights: Tensor, offset: Tensor) -> Tensor:
    """Rows drawn by their weights, evenly spaced from one uniform offset, with shape $(B,)$."""
    shares = torch.softmax(log_weights.double(), 0).cumsum(0)
    places = (torch.arange(len(shares), device=shares.device) + offset.double()) / len(shares) * shares[-1]
    return torch.searchsorted(shares, places).clamp_(max=len(shares) - 1)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """One number for each point, as wide as points are."""
    return values.view(-1, *[1] * (like.ndim - 1))
