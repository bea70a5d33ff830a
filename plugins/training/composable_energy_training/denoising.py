r"""Denoising score matching at many noise levels: energies of noisy points whose gradient points back to the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.noise import Noise
from composable_energy_training.inputs import conditions_of, energy_of, wide
from composable_energy_training.objective import Batch, Loss, Objective

__all__ = ["DenoisingScoreMatching", "levels_of", "noisy"]


class DenoisingScoreMatching(Objective):
    r"""How well the gradient at noisy points tells the noise:

    $$\bigl\langle \lvert \sigma \nabla E(x + \sigma \xi, \sigma) - \xi \rvert^2 / d \bigr\rangle$$

    over points $x$ with $d$ coordinates, standard normal $\xi$, and $\log \sigma$ uniform between two levels. At each level the energy
    that is best is that of the data with noise, $-\log (p * \mathcal N(0, \sigma^2))(x)$ up to a constant (Vincent, 2011), and the
    levels weigh alike (Song & Ermon, 2019). No chain is drawn; the energy, called with `sigma`, is sampled by `annealed` afterwards.

    Args:
        sigma_min: The lowest level, in units of the points.
        sigma_max: The highest.
        condition: An attribute of the data, as which the energy takes its condition `y`.

    Raises:
        OptionError: The levels are not positive and in order.

    References:
        A connection between score matching and denoising autoencoders (Vincent, 2011).
        Generative modeling by estimating gradients of the data distribution (Song & Ermon, 2019), https://arxiv.org/abs/1907.05600
    """

    def __init__(self, sigma_min: float, sigma_max: float, condition: str | None = None) -> None:
        self.levels, self.condition = levels_of(sigma_min, sigma_max), condition

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss; its scalars are `error`, the loss itself, and `magnitude`, the mean size of the energies.

        Raises:
            OptionError: The model is no energy or lacks the condition, or the data lack the attribute.
        """
        energy = energy_of(model)
        if "sigma" not in energy.conditions:
            raise OptionError(f"{energy} does not depend on the noise level: give its `forward` a parameter sigma.")
        x, sigma, xi = noisy(batch.x, self.levels, batch.noise)
        with torch.enable_grad():
            x.requires_grad_()
            energies = energy(x, sigma=sigma, **conditions_of(energy, batch, self.condition))
            gradient = torch.autograd.grad(energies.sum(), x, create_graph=True)[0]
        error = wide(gradient * _beside(sigma, x) - xi).square().mean()
        return Loss(error, {"error": error.detach(), "magnitude": wide(energies.detach()).abs().mean()})


def levels_of(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """Returns the lowest and the highest noise level.

    Raises:
        OptionError: They are not positive, finite and in order.
    """
    if not 0 < sigma_min <= sigma_max < math.inf:
        raise OptionError(f"Noise levels need 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}.")
    return float(sigma_min), float(sigma_max)


def noisy(x: Tensor, levels: tuple[float, float], noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns noisy points $x + \sigma \xi$, their levels $\sigma$ with shape $(B,)$, $\log \sigma$ uniform, and the noise $\xi$.

    Args:
        x: The points, with shape $(B, *)$.
        levels: The lowest and the highest level.
        noise: The noise of these rows.
    """
    low, high = (math.log(level) for level in levels)
    sigma = (noise.child("level").uniform(x) * (high - low) + low).exp().to(x.dtype)
    xi = noise.child("noise").normal(x)
    return torch.addcmul(x.detach(), _beside(sigma, x), xi), sigma, xi


def _beside(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.view(-1, *[1] * (x.ndim - 1))
