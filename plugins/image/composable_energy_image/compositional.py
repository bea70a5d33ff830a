r"""The networks of Compositional visual generation with energy based models (Du, Li & Mordatch, 2020), https://arxiv.org/abs/2004.06030.

They are the residual networks of the paper before (`composable_energy_image.residual`), with swish. The paper trains one network per
attribute, conditional on its value (`labels=2` for present and absent), and samples from sums of them with steps
$x' = \text{clamp}(x - 100\, \nabla E + .005\, \xi)$.
"""

from __future__ import annotations

from composable_energy.options import check_integer
from composable_energy_image.arguments import Activation
from composable_energy_image.energy import ImageEnergy, NetOptions
from composable_energy_image.recommendation import recommend_langevin
from composable_energy_image.residual import Block, ResidualEnergy

__all__ = ["compositional_64", "compositional_128"]


def compositional_128(
    *,
    size: int = 128,
    channels: int = 3,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 64,
    activation: Activation = "swish",
    spectral_norm: bool = True,
    dropout: float = 0.0,
) -> ImageEnergy:
    """Builds the network for faces of 128 pixels: six residual blocks, five of which halve the size, and sum pooling.

    Args:
        size: Height and width, a multiple of 32.
        channels: Channels of an image.
        labels: Number of labels; None for an unconditional energy.
        numbers: Number of real conditions of each image, such as 2 for a position; None for none.
        width: Channels of the first block; the last ones have eight times as many.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether to bound spectral norms by 1.
        dropout: Fraction of features that a block drops in training.
    """
    w = check_integer("width", width)
    blocks = [Block(w, True), Block(2 * w, True), Block(4 * w, True), Block(8 * w, True), Block(8 * w, True), Block(8 * w)]
    options = NetOptions(size, channels, labels, numbers, activation, spectral_norm, dropout)
    energy = ResidualEnergy("compositional-128", blocks, options, first=w)
    energy.recommended = recommend_langevin(100, 0.005)
    return energy


def compositional_64(
    *,
    size: int = 64,
    channels: int = 3,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 64,
    activation: Activation = "swish",
    spectral_norm: bool = True,
    dropout: float = 0.0,
) -> ImageEnergy:
    """Builds the network for scenes of cubes of 64 pixels: five residual blocks, four of which halve the size, and mean pooling.

    Args:
        size: Height and width, a multiple of 16.
        channels: Channels of an image.
        labels: Number of labels; None for an unconditional energy.
        numbers: Number of real conditions of each image, such as 2 for a position; None for none.
        width: Channels of the first block; the last one has four times as many.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether to bound spectral norms by 1.
        dropout: Fraction of features that a block drops in training.
    """
    w = check_integer("width", width)
    blocks = [Block(w, True), Block(2 * w, True), Block(2 * w, True), Block(2 * w), Block(4 * w, True)]
    options = NetOptions(size, channels, labels, numbers, activation, spectral_norm, dropout)
    energy = ResidualEnergy("compositional-64", blocks, options, first=w, pool="mean")
    energy.recommended = recommend_langevin(100, 0.005)
    return energy
