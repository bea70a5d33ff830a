r"""The geometric path $E_b = (1 - b)\, E_0 + b\, E$ from a Gaussian $E_0$ at $b = 0$ to an energy $E$ at $b = 1$, and steps along it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from composable_energy import Energy, as_energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_number
from composable_energy.sampling import State, energy_and_gradient
from composable_energy_mcmc.batch import check_precision, judge, select, sum_of_each
from composable_energy_mcmc.hamiltonian import RUNAWAY
from composable_energy_mcmc.metric import Metric, same_tensor

_ROWS_PER_AXIS = 10  # points for each coordinate from which a covariance is estimated
_QUARTILES = 1.349  # the distance of the quartiles of a standard normal density
_MAX_AXES = 256  # above, products with a matrix cost more than most energies


class Gaussian:
    r"""The normal distribution of $\mu + S z$, with $z$ standard normal.

    Args:
        mean: $\mu$, with the shape of a point.
        scale: The diagonal of $S$, with the shape of a point; or $S$ itself, a lower triangular matrix over flattened points.

    Attributes:
        log_volume: $\log |\det S|$.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.scale = mean, scale
        self.metric = Metric(scale, mean.shape)
        diagonal = scale if self.metric.kind == "diagonal" else scale.diagonal()
        self.log_volume = float(diagonal.double().abs().log().sum())

    @classmethod
    def from_options(cls, mean: float | Tensor, scale: float | Tensor, like: Tensor) -> Gaussian:
        """Returns the Gaussian of two options of a sampler, for points with shape $(B, *)$."""
        try:
            return cls(*(torch.as_tensor(value).to(like).expand(like.shape[1:]) for value in (mean, scale)))
        except RuntimeError:
            shapes = [tuple(torch.as_tensor(value).shape) for value in (mean, scale)]
            raise ShapeError(f"mean and scale have shapes {shapes[0]} and {shapes[1]}, the points have {tuple(like.shape[1:])}.") from None

    @classmethod
    def from_distribution(cls, distribution: Distribution) -> Gaussian:
        """Returns the Gaussian of a torch distribution; the shape of a point is its batch shape followed by its event shape."""
        inner = distribution
        while isinstance(inner, Independent):
            inner = inner.base_dist
        if isinstance(inner, Normal):
            return cls(inner.loc.detach(), inner.scale.detach())
        if isinstance(inner, MultivariateNormal) and not inner.batch_shape:
            return cls(inner.loc.detach(), inner.scale_tril.detach())
        raise OptionError(f"base is a Normal or one MultivariateNormal of torch.distributions, got {as_energy(distribution)}.")

    def to(self, like: Tensor) -> Gaussian:
        """Returns the Gaussian with the dtype and device of some points."""
        same = self.mean.dtype == like.dtype and self.mean.device == like.device
        return self if same else Gaussian(self.mean.to(like), self.scale.to(like))

    def from_standard(self, z: Tensor) -> Tensor:
        r"""Returns $\mu + S z$, with shape $(B, *)$."""
        return self.mean + self.metric.unwhiten(z)

    def standardize(self, x: Tensor) -> Tensor:
        r"""Returns $S^{-1} (x - \mu)$, with shape $(B, *)$."""
        return self.metric.whiten(x - self.mean)

    def energy(self, x: Tensor) -> Tensor:
        """Returns the negative logarithm of the density, with shape $(B,)$."""
        return normal_energy(self.standardize(x), self.log_volume)

    def gradient(self, x: Tensor) -> Tensor:
        """Returns the gradient of the energy, of a Gaussian with a diagonal scale."""
        return (x - self.mean) / self.scale.square()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Gaussian):
            return NotImplemented
        return same_tensor(self.mean, other.mean) and self.metric == other.metric

    def __hash__(self) -> int:
        return hash(self.metric)

    def __str__(self) -> str:
        return f"a Gaussian at {_format(self.mean)} with scale {_format(self.scale)}"


def normal_energy(z: Tensor, log_volume: float = 0.0) -> Tensor:
    r"""Returns $\tfrac12 \lVert z \rVert^2 + \tfrac d2 \log 2 \pi$, the standard normal energy, plus a constant, with shape $(B,)$."""
    return sum_of_each(z.square()) / 2 + (log_volume + z.shape[1:].numel() * math.log(2 * math.pi) / 2)


def fit_gaussian(points: Tensor, factor: float, *, covariance: bool = False) -> Gaussian:
    """Returns the Gaussian with the mean of some points and a multiple of their spread; a coordinate that does not vary counts as 1."""
    rows = points.reshape(len(points), -1).double()
    mean, spread, axes = rows.mean(0), rows.std(0), rows.shape[1]
    scale = torch.where(spread > 0, spread, 1.0).view(points.shape[1:])
    if covariance and 1 < axes <= _MAX_AXES and len(rows) >= _ROWS_PER_AXIS * axes:
        triangle, failed = torch.linalg.cholesky_ex(torch.cov(rows.T))
        scale = scale if failed else triangle
    return Gaussian(mean.view(points.shape[1:]).to(points), (factor * scale).to(points))


def fit_bulk(points: Tensor, factor: float) -> Gaussian:
    """Returns the Gaussian with the quartiles of some points, wider by a factor, so that few points in tails do not count."""
    low, middle, high = points.double().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=points.device), 0)
    spread = (high - low) / _QUARTILES
    return Gaussian(middle.to(points), (factor * torch.where(spread > 0, spread, 1.0)).to(points))


def check_gaussian_options(mean: object, scale: object) -> None:
    """Raises unless `mean` and `scale` are both None, or numbers or tensors with a positive scale."""
    if (mean is None) != (scale is None):
        raise OptionError("mean and scale of the base belong together: give both of them, or neither.")
    for name, value in (("mean", mean), ("scale", scale)):
        if value is not None and not isinstance(value, Tensor):
            check_number(name, value)
    if scale is not None and not bool((torch.as_tensor(scale) > 0).all()):
        raise OptionError(f"scale must be positive, got {scale}.")


def _format(values: Tensor) -> str:
    low, high = values.min().item(), values.max().item()
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def geometric_energy(level: float | Tensor, at_base: Tensor, energies: Tensor) -> Tensor:
    """Returns $(1 - b) E_0 + b E$, with shape $(B,)$; at either end the other energy has no influence, even if it is infinite."""
    if not isinstance(level, Tensor):
        return energies if level == 1 else at_base if level == 0 else (1 - level) * at_base + level * energies
    return torch.where(level == 1, energies, torch.where(level == 0, at_base, (1 - level) * at_base + level * energies))


def evaluate(energy: Energy, x: Tensor) -> State:
    r"""Returns points with $E$ and $\nabla E$; where the energy is not a number it is infinite, and there the gradient is 0."""
    energies, grad = energy_and_gradient(energy, x)
    energies = torch.where(energies.isnan(), torch.inf, energies)
    state = State(x, energies, torch.where(unsqueeze_to(energies == torch.inf, x), 0.0, grad))
    check_precision(state)
    return state


def hamiltonian_step(
    energy: Energy, base: Gaussian, state: State, levels: Tensor, step_sizes: Tensor, momentum: Tensor, leapfrogs: int, log_uniform: Tensor
) -> tuple[State, Tensor]:
    r"""Takes a step of Hamiltonian Monte Carlo with each point at its own level $b$, and step sizes in units of the base's scale. Proposals
    are accepted as `judge` says, and runaway trajectories are rejected."""
    b, units = unsqueeze_to(levels, state.x), unsqueeze_to(step_sizes, state.x) * base.scale

    def kick(here: State) -> Tensor:
        return ((1 - b) * base.gradient(here.x) + b * here.grad).mul_(units)

    def hamiltonian(here: State, momentum: Tensor) -> Tensor:
        return geometric_energy(levels, base.energy(here.x), here.energy) + sum_of_each(momentum.square()) / 2

    before, here, highest = hamiltonian(state, momentum), state, state.energy
    momentum = torch.sub(momentum, kick(here), alpha=0.5)
    for step in range(1, leapfrogs + 1):
        x = torch.addcmul(here.x, units, momentum)
        here = State(x, *energy_and_gradient(energy, x))
        momentum.sub_(kick(here), alpha=1.0 if step < leapfrogs else 0.5)
        highest = torch.fmax(highest, here.energy)
    log_ratio = before - hamiltonian(here, momentum)
    runaway = (levels * highest > before + RUNAWAY) & ~log_ratio.isfinite()
    accepted, rates = judge(here.energy, torch.where(runaway, -torch.inf, log_ratio), log_uniform)
    return select(accepted, here, state), rates
