r"""Conditional energies $E(z, \sigma \mid y)$ of codes: absolute densities, unlike heads, which are evidence over a base."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy_image import CodeEnergy
from composable_energy_image.code_energy import CodeNetwork

_WAVES = (1, 2, 4)  # half periods over the range of a number


class ConditionalEnergy(ce.Energy):
    r"""The energy of pictures given a class or numbers: $E(z, \sigma \mid y)$.

    It starts as a copy of a base that ignores the condition, so that training only has to learn the effect of the condition.

    Args:
        base: The base to copy; its decoder is shared.
        classes: Number of classes of `y`; 0 if `y` is numbers.
        dims: Number of numbers in `y`, each from -1 to 1.
    """

    comes_trained = False

    def __init__(self, base: CodeEnergy, *, classes: int = 0, dims: int = 0) -> None:
        super().__init__()
        if (classes > 0) == (dims > 0):
            raise OptionError(f"y has either classes or numbers: give exactly one, got classes={classes} and dims={dims}.")
        if not isinstance(base.net, CodeNetwork):
            raise OptionError(f"{base} is a mixture, which has no network to copy: train a base with model.components=0.")
        self.classes, self.dims, self.name = classes, dims, "conditional"
        self.sigma_min, self.decoder, self.recommended = base.sigma_min, base.decoder, base.recommended
        self.event_shape = base.event_shape
        self.net = _add_conditions(base.net, classes or dims * (1 + 2 * len(_WAVES)))

    def forward(self, x: Tensor, y: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns energies with shape $(B,)$ of codes with shape $(B, D)$ at levels with shape $()$ or $(B,)$.

        The condition $y$ are classes with shape $(B,)$, or numbers with shape $(B,)$ or $(B, dims)$.
        """
        return self.net(x, sigma=self.sigma_min if sigma is None else sigma, y=self.features(y).to(x))

    def features(self, y: Tensor) -> Tensor:
        """Returns the numbers that the network reads for classes or numbers $y$: one of them is 1, or the numbers and waves of them."""
        if y.numel() != (wanted := self.dims or 1) * len(y):
            what = "a class" if self.classes else f"{wanted} numbers"
            raise ShapeError(f"{self} takes {what} as y, got values of shape {tuple(y.shape[1:])}.")
        if self.classes:
            label = y.reshape(-1).long()
            if len(y) and not (0 <= label.min() <= label.max() < self.classes and (label == y.reshape(-1)).all()):
                raise OptionError(f"{self} takes classes from 0 to {self.classes - 1} as y, got {y.unique().tolist()}.")
            return F.one_hot(label, self.classes)
        numbers = y.reshape(len(y), self.dims)
        angles = [numbers * (math.pi / 2 * wave) for wave in _WAVES]
        return torch.cat([numbers, *(f(angle) for angle in angles for f in (torch.sin, torch.cos))], 1)


def _add_conditions(network: CodeNetwork, conditions: int) -> CodeNetwork:
    """Returns a copy of a network with more inputs, whose weights are zero."""
    inner = network.net
    copy = CodeNetwork(
        inner.read.in_features, width=inner.read.out_features, blocks=len(inner.outer), conditions=conditions, balanced=network.balanced
    )
    with torch.no_grad():
        for name, value in inner.state_dict().items():
            target = copy.net.get_parameter(name)
            target.zero_()
            target[tuple(slice(0, length) for length in value.shape)] = value
    return copy
