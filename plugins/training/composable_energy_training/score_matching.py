r"""Denoising score matching at many noise levels: trains the gradient of the energy at noisy points."""

import math

import torch
from torch import Tensor, nn

from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError
from composable_energy.options import check_number
from composable_energy.sampling import Noise
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
        """Returns the loss. Its scalars are `error`, the loss itself, and `magnitude`, the mean absolute energy."""
        energy = require_levels(model)
        x, sigma, xi = add_noise(batch.x, self.levels, batch.noise)
        conditions = get_conditions(energy, batch, self.condition)
        energies, gradient = differentiable_gradient(energy, x, sigma=sigma, **conditions)
        errors = as_float32(gradient * unsqueeze_to(sigma, x) - xi).square()
        if self.scale is not None:
            errors = errors * (1 + unsqueeze_to(sigma / self.scale, x).square())
        error = errors.mean()
        return Loss(error, {"error": error.detach(), "magnitude": as_float32(energies.detach()).abs().mean()})


def require_levels(model: nn.Module) -> Energy:
    """Returns the model if it is an energy that depends on the noise level."""
    energy = require_energy(model)
    if "sigma" not in energy.conditions:
        raise OptionError(f"{energy} does not depend on the noise level: give its `forward` a parameter sigma.")
    return energy


def check_levels(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """Returns the lowest and the highest noise level as floats."""
    if not 0 < sigma_min <= sigma_max < math.inf:
        raise OptionError(f"Noise levels need 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}.")
    return float(sigma_min), float(sigma_max)


def add_noise(x: Tensor, levels: tuple[float, float], noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns noisy points $x + \sigma \xi$, their levels $\sigma$ with shape $(B,)$ and $\log \sigma$ uniform, and the noise $\xi$."""
    low, high = (math.log(level) for level in levels)
    sigma = (noise.child("level").uniform(x) * (high - low) + low).exp().to(x.dtype)
    xi = noise.child("noise").normal(x)
    return torch.addcmul(x.detach(), unsqueeze_to(sigma, x), xi), sigma, xi
