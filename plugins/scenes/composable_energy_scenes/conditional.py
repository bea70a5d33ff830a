r"""Conditional energies $E(z, \sigma \mid y)$ of codes: densities of their own, where heads are evidence over a base."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_image import CodeEnergy
from composable_energy_image.code_energy import CodeNetwork

__all__ = ["ConditionalEnergy"]

_WAVES = (1, 2, 4)  # half periods in the range of positions


class ConditionalEnergy(ce.Energy):
    r"""The energy of pictures of which one thing is told: $E(z, \sigma \mid y)$.

    It begins as a base that is told nothing, so that training has only to learn what the condition changes.

    Args:
        base: Where it begins; its decoder is shared.
        classes: How many classes `y` has; 0 if it is numbers.
        dims: How many numbers `y` has.
        center: What each number has as its middle.
        reach: How far it goes to both sides.

    Raises:
        OptionError: `y` has neither classes nor numbers, or both.
    """

    def __init__(self, base: CodeEnergy, *, classes: int = 0, dims: int = 0, center: float = 0.0, reach: float = 1.0) -> None:
        super().__init__()
        if (classes > 0) == (dims > 0):
            raise OptionError(f"y has either classes or numbers: give one of both, got classes={classes} and dims={dims}.")
        self.classes, self.dims, self.center, self.reach, self.name = classes, dims, center, reach, "conditional"
        self.sigma_min, self.decoder, self.recommended = base.sigma_min, base.decoder, base.recommended
        self.event_shape = base.event_shape
        self.net = _told(base.net, classes or dims * (1 + 2 * len(_WAVES)))

    def forward(self, x: Tensor, y: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns energies with shape $(B,)$ of codes with shape $(B, D)$ at levels with shape $()$ or $(B,)$.

        Args:
            x: The codes.
            y: Classes with shape $(B,)$, or numbers with shape $(B,)$ or $(B, dims)$.
            sigma: The levels.
        """
        return self.net(x, sigma=self.sigma_min if sigma is None else sigma, condition=self._features(y).to(x))

    def _features(self, y: Tensor) -> Tensor:
        if self.classes:
            return F.one_hot(y.long(), self.classes)
        numbers = (y.reshape(len(y), self.dims) - self.center) / self.reach
        angles = [numbers * (math.pi / 2 * wave) for wave in _WAVES]
        return torch.cat([numbers, *(f(angle) for angle in angles for f in (torch.sin, torch.cos))], 1)


def _told(network: CodeNetwork, conditions: int) -> CodeNetwork:
    """Returns a copy of a network that is told some numbers more, which change nothing yet."""
    inner = network.net
    told = CodeNetwork(inner.read.in_features, width=inner.read.out_features, blocks=len(inner.outer), conditions=conditions)
    with torch.no_grad():
        for name, value in inner.state_dict().items():
            target = told.net.get_parameter(name)
            target.zero_()
            target[tuple(slice(0, length) for length in value.shape)] = value
    return told
