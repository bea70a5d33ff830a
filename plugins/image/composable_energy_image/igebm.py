r"""The nets of Implicit generation and modeling with energy-based models (Du & Mordatch, 2019), https://arxiv.org/abs/1903.08689.

From its appendix and released code: every convolution is spectrally normalised (one power iteration, target 1), activations are leaky ReLU
with slope .2, and swish for dSprites. The paper draws with noisy steps $x' = \text{clamp}(x - a \nabla E + .005\, \xi)$ to [0, 1], with
$a$ = 10 for CIFAR-10, where the gradient of a pixel is cut off at .01, and 500 for dSprites; that is `langevin` with `step_size` $= 2 a$ at
the temperature $.005^2 / 2 a$.
"""

from __future__ import annotations

import composable_energy as ce
from composable_energy_image.arguments import check_integer
from composable_energy_image.convolutional import ConvolutionalEnergy
from composable_energy_image.recommendation import recommend_langevin
from composable_energy_image.residual import Block, ResidualEnergy

__all__ = ["igebm_dsprites", "igebm_mnist", "igebm_resnet32", "igebm_resnet32_large", "igebm_resnet32_wider"]


def igebm_resnet32(
    *,
    size: int = 32,
    channels: int = 3,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 128,
    activation: str = "leaky-relu",
    spectral_norm: bool = True,
    dropout: float = 0.0,
) -> ce.Energy:
    """Returns ResNet32, the paper's conditional net for CIFAR-10: six residual blocks.

    Args:
        size: Height and width, a multiple of 8.
        channels: Channels of an image.
        labels: How many labels there are; None for an unconditional energy.
        numbers: How many numbers each image is told instead, such as 2 for a position; None for none.
        width: Channels of the first blocks; the later ones have twice as many.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether spectral norms are bounded by 1.
        dropout: The fraction of features that a block drops in training.
    """
    w = check_integer("width", width)
    blocks = [Block(w, True), Block(w), Block(2 * w, True), Block(2 * w), Block(2 * w, True), Block(2 * w)]
    return _drawn(
        ResidualEnergy(
            "igebm-resnet32",
            blocks,
            first=w,
            size=size,
            channels=channels,
            labels=labels,
            numbers=numbers,
            activation=activation,
            spectral_norm=spectral_norm,
            dropout=dropout,
        ),
        step=10,
        max_gradient=0.01,
    )


def igebm_resnet32_large(
    *,
    size: int = 32,
    channels: int = 3,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 128,
    activation: str = "leaky-relu",
    spectral_norm: bool = True,
    dropout: float = 0.5,
) -> ce.Energy:
    """Returns ResNet32Large, the paper's unconditional net for CIFAR-10: nine residual blocks, with dropout.

    Args:
        size: Height and width, a multiple of 8.
        channels: Channels of an image.
        labels: How many labels there are; None for an unconditional energy.
        numbers: How many numbers each image is told instead, such as 2 for a position; None for none.
        width: Channels of the first blocks; the last ones have four times as many.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether spectral norms are bounded by 1.
        dropout: The fraction of features that a block drops in training.
    """
    w = check_integer("width", width)
    return _drawn(
        ResidualEnergy(
            "igebm-resnet32-large",
            _nine(w),
            first=w,
            size=size,
            channels=channels,
            labels=labels,
            numbers=numbers,
            activation=activation,
            spectral_norm=spectral_norm,
            dropout=dropout,
        ),
        step=10,
        max_gradient=0.01,
    )


def igebm_resnet32_wider(
    *,
    size: int = 32,
    channels: int = 3,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 192,
    activation: str = "leaky-relu",
    spectral_norm: bool = True,
    dropout: float = 0.5,
) -> ce.Energy:
    """Returns ResNet32Wider: as ResNet32Large with 192 channels for CIFAR-10, or 256 for ImageNet, after a first convolution of 128.

    Args:
        size: Height and width, a multiple of 8.
        channels: Channels of an image.
        labels: How many labels there are; None for an unconditional energy.
        numbers: How many numbers each image is told instead, such as 2 for a position; None for none.
        width: Channels of the first blocks; the last ones have four times as many.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether spectral norms are bounded by 1.
        dropout: The fraction of features that a block drops in training.
    """
    return _drawn(
        ResidualEnergy(
            "igebm-resnet32-wider",
            _nine(check_integer("width", width)),
            first=128,
            size=size,
            channels=channels,
            labels=labels,
            numbers=numbers,
            activation=activation,
            spectral_norm=spectral_norm,
            dropout=dropout,
        ),
        step=10,
        max_gradient=0.01,
    )


def igebm_mnist(
    *,
    size: int = 28,
    channels: int = 1,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 64,
    activation: str = "leaky-relu",
    spectral_norm: bool = True,
) -> ce.Energy:
    """Returns the paper's net for MNIST: a convolution and three that halve the size, then two linear layers.

    Args:
        size: Height and width, any.
        channels: Channels of an image.
        labels: How many labels there are; None for an unconditional energy. The released code appends the label to the image; here it sets
            gains and biases, as in the other nets.
        numbers: How many numbers each image is told instead, such as 2 for a position; None for none.
        width: Channels of the first halving convolution; the others have 2 and 4 times as many. The convolution before has 64.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether spectral norms are bounded by 1.
    """
    w = check_integer("width", width)
    return ConvolutionalEnergy(
        "igebm-mnist",
        [64, w, 2 * w, 4 * w],
        dense=2 * w,
        size=size,
        channels=channels,
        labels=labels,
        numbers=numbers,
        activation=activation,
        spectral_norm=spectral_norm,
    )


def igebm_dsprites(
    *,
    size: int = 64,
    channels: int = 1,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 64,
    activation: str = "swish",
    spectral_norm: bool = True,
) -> ce.Energy:
    """Returns the paper's net for dSprites: a convolution and four that halve the size, then two linear layers.

    The paper has one net for each factor: the shape (`labels=3`), the size (`numbers=1`), the position (`numbers=2`), or the rotation as
    cosine and sine (`numbers=2`). Its gains and biases are linear in these numbers, as those of vectors `y` of an energy with `labels=2`;
    with `numbers` they also see waves of them.

    Args:
        size: Height and width, any.
        channels: Channels of an image.
        labels: How many labels there are; None for an unconditional energy.
        numbers: How many numbers each image is told instead, such as 2 for a position; None for none.
        width: Channels of the first halving convolution; the others have twice as many. The convolution before has 32.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether spectral norms are bounded by 1.
    """
    w = check_integer("width", width)
    energy = ConvolutionalEnergy(
        "igebm-dsprites",
        [32, w, 2 * w, 2 * w, 2 * w],
        dense=2 * w,
        size=size,
        channels=channels,
        labels=labels,
        numbers=numbers,
        activation=activation,
        spectral_norm=spectral_norm,
    )
    return _drawn(energy, step=500)


def _nine(w: int) -> list[Block]:
    first, middle, last = (w, 2 * w, 4 * w)
    return [
        *(Block(first, True), Block(first), Block(first)),
        *(Block(middle, True), Block(middle), Block(middle)),
        *(Block(last, True), Block(last), Block(last)),
    ]


def _drawn(energy: ce.Energy, *, step: float, max_gradient: float | None = None) -> ce.Energy:
    energy.recommended = recommend_langevin(step, 0.005, max_gradient=max_gradient)
    return energy
