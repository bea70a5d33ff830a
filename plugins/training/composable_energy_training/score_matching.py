r"""Objectives at many noise levels: denoising score matching, and contrastive divergence of a point given a noisier one."""

import math
from itertools import repeat

import torch
from torch import Tensor, nn

from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Noise, energy_and_gradient, twin
from composable_energy_training.contrastive_divergence import contrast, run_langevin
from composable_energy_training.objective import Batch, Loss, Objective, as_float32, get_conditions, require_energy
from composable_energy_training.second_derivatives import differentiable_gradient


class DenoisingScoreMatching(Objective):
    r"""The squared error of the gradient at noisy points as a prediction of the noise:

    $$\bigl\langle \lvert \sigma \nabla E(x + \sigma \xi, \sigma) - \xi \rvert^2 / d \bigr\rangle$$

    over points $x$ with $d$ coordinates, standard normal $\xi$, and $\log \sigma$ uniform between two levels. At each level the minimum is
    the energy of the data with noise, $-\log (p * \mathcal N(0, \sigma^2))(x)$ up to a constant (Vincent, 2011), and all levels have equal
    weight (Song & Ermon, 2019). No chains are needed. The energy takes `sigma`, and is sampled by `annealed` afterwards.

    The error that remains falls as $1 / \sigma^2$ above the standard deviation $s$ of the data. With `scale` $= s$ errors are weighted by
    $1 + \sigma^2 / s^2$ (Karras et al., 2022), so that what the energy has at high levels counts as much as at low ones.

    Args:
        sigma_min: The lowest level, in units of the points.
        sigma_max: The highest level.
        condition: An attribute of the data that becomes the condition `y` of the energy.
        scale: Standard deviation $s$ of the points; None for no weights.

    Raises:
        OptionError: The levels are not positive and in order, or the scale is not positive.

    References:
        A connection between score matching and denoising autoencoders (Vincent, 2011).
        Generative modeling by estimating gradients of the data distribution (Song & Ermon, 2019), https://arxiv.org/abs/1907.05600
        Elucidating the design space of diffusion-based generative models (Karras et al., 2022), https://arxiv.org/abs/2206.00364
    """

    def __init__(self, sigma_min: float, sigma_max: float, condition: str | None = None, scale: float | None = None) -> None:
        self.levels, self.condition = check_levels(sigma_min, sigma_max), condition
        self.scale = None if scale is None else check_number("scale", scale, above=0)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars are `error`, the loss itself, its `excess` over that of a flat energy, and `magnitude`, the mean
        absolute energy."""
        energy = require_levels(model)
        x, sigma, xi = add_noise(batch.x, self.levels, batch.noise)
        energies, gradient = differentiable_gradient(energy, x, sigma=sigma, **get_conditions(energy, batch, self.condition))
        weight = 1 if self.scale is None else 1 + unsqueeze_to(sigma / self.scale, x).square()
        error, nothing = ((as_float32(left).square() * weight).mean() for left in (gradient * unsqueeze_to(sigma, x) - xi, xi))
        scalars = {"error": error.detach(), "excess": (error - nothing).detach(), "magnitude": as_float32(energies.detach()).abs().mean()}
        return Loss(error, scalars)


def require_levels(model: nn.Module) -> Energy:
    """Returns the model if it is an energy that depends on the noise level."""
    energy = require_energy(model)
    if "sigma" not in energy.conditions:
        raise OptionError(f"{energy} does not depend on the noise level: give its `forward` a parameter sigma.")
    return energy


def check_levels(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """Returns the lowest and the highest noise level as floats."""
    levels = check_number("sigma_min", sigma_min, above=0), check_number("sigma_max", sigma_max, above=0)
    if levels[0] > levels[1]:
        raise OptionError(f"Noise levels need 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}.")
    return levels


def add_noise(x: Tensor, levels: tuple[float, float], noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns noisy points $x + \sigma \xi$, their levels $\sigma$ with shape $(B,)$ and $\log \sigma$ uniform, and the noise $\xi$."""
    low, high = (math.log(level) for level in levels)
    sigma, xi = (noise.child("level").uniform(x) * (high - low) + low).exp().to(x.dtype), noise.child("noise").normal(x)
    return torch.addcmul(x.detach(), unsqueeze_to(sigma, x), xi), sigma, xi


class DiffusionRecoveryLikelihood(Objective):
    r"""Maximum likelihood of a point $x_\sigma$ with noise of level $\sigma$, given the same point with more noise,
    $y = x_\sigma + s\, \xi$ (Gao et al., 2021, section 3.2):

    $$p(x_\sigma \mid y) \propto \exp\Bigl( -E(x_\sigma, \sigma) - \frac{\lVert y - x_\sigma \rVert^2}{2 s^2} \Bigr), \qquad
      s^2 = (r^2 - 1)\, \sigma^2.$$

    Its gradient is that of $\langle E(x_\sigma, \sigma) - E(x', \sigma) \rangle$ with draws $x'$ of this density. The Gaussian keeps it
    near $y$ and almost of one mode, so that a short chain from $y$ draws from it, where chains of the density itself would not mix:

    $$x' \leftarrow x' - \delta s^2 \Bigl( \nabla E(x', \sigma) + \frac{x' - y}{s^2} \Bigr) + \sqrt{\delta (2 - \delta)}\, s\, \xi.$$

    The paper's noise is $\sqrt{2 \delta}\, s\, \xi$. With $2 - \delta$ the step is exact for the Gaussian part, which is most of the
    curvature; without it the energy would have to make up for the bias of the step, and would be too narrow.

    At the minimum $E(\cdot, \sigma)$ is the energy of the data with noise, as with `DenoisingScoreMatching`, and is sampled by `annealed`.
    Here noise adds to points, and levels are continuous: $\log \sigma$ is uniform between the two levels. The paper shrinks points as it
    adds noise, which is the same up to a change of units, and has 6 levels.

    Args:
        sigma_min: The lowest level, in units of the points.
        sigma_max: The highest level of the energy; points $y$ have noise up to $r \sigma_\text{max}$.
        ratio: $r$, the ratio of two neighbouring levels, above 1. Smaller ones make chains easier and energies flatter.
        steps: Steps of a chain; $(1 - \delta)^\text{steps}$ of the start is left in the end. 30 in the paper.
        step_size: $\delta$ in (0, 1), the share of the way to $y$ that a step takes.
        l2: The weight of squared energies, see `ContrastiveDivergence`.
        condition: An attribute of the data that becomes the condition `y` of the energy.

    References:
        Learning energy-based models by diffusion recovery likelihood (Gao et al., 2021), https://arxiv.org/abs/2012.08125
    """

    def __init__(
        self,
        sigma_min: float,
        sigma_max: float,
        *,
        ratio: float = 1.5,
        steps: int = 20,
        step_size: float = 0.2,
        l2: float = 0.0,
        condition: str | None = None,
    ) -> None:
        self.levels, self.condition = check_levels(sigma_min, sigma_max), condition
        self.ratio, self.steps = check_number("ratio", ratio, above=1), check_integer("steps", steps)
        self.step_size, self.l2 = check_number("step_size", step_size, above=0, below=1), check_number("l2", l2, least=0)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars are those of `ContrastiveDivergence`, and the share of chains that `diverged`."""
        energy = require_levels(model)
        x, sigma, _ = add_noise(batch.x, self.levels, batch.noise)
        conditions = {"sigma": sigma, **get_conditions(energy, batch, self.condition)}
        width = sigma * math.sqrt(self.ratio**2 - 1)
        noisier = x + unsqueeze_to(width, x) * batch.noise.child("more").normal(x)
        copy, precision = twin(energy).given(**conditions), unsqueeze_to(width, x) ** -2

        def gradient(points: Tensor) -> Tensor:
            return energy_and_gradient(copy, points)[1] + precision * (points - noisier)

        share = self.step_size
        factors = repeat((share * width.square(), math.sqrt(share * (2 - share)) * width), self.steps)
        chains, diverged = run_langevin(gradient, noisier, batch.noise.child(f"chains {batch.step}"), factors)
        value, scalars = contrast(model, x, chains, conditions, self.l2)
        return Loss(value, {**scalars, "diverged": diverged})
