r"""The networks of Implicit generation and modeling with energy-based models (Du & Mordatch, 2019), https://arxiv.org/abs/1903.08689.

As in its appendix and released code, every convolution has spectral normalization (one power iteration, target 1). Activations are leaky
ReLU with slope .2, and swish for dSprites. The paper samples with steps $x' = \text{clamp}(x - a \nabla E + .005\, \xi)$ to [0, 1], with
$a$ = 10 for CIFAR-10, where the gradient of a pixel is bounded by .01, and $a$ = 500 for dSprites. That is `langevin` with `step_size`
$= 2 a$ and temperature $.005^2 / 2 a$.
"""

from __future__ import annotations

from composable_energy.options import check_integer
from composable_energy_image.arguments import Activation
from composable_energy_image.convolutional import ConvolutionalEnergy
from composable_energy_image.energy import ImageEnergy, NetOptions
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
    activation: Activation = "leaky-relu",
    spectral_norm: bool = True,
    dropout: float = 0.0,
) -> ImageEnergy:
    """Builds ResNet32, the paper's conditional network for CIFAR-10: six residual blocks.

    Args:
        size: Height and width, a multiple of 8.
        channels: Channels of an image.
        labels: Number of labels; None for an unconditional energy.
        numbers: Number of real conditions of each image, such as 2 for a position; None for none.
        width: Channels of the first blocks; the later ones have twice as many.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether to bound spectral norms by 1.
        dropout: Fraction of features that a block drops in training.
    """
    w = check_integer("width", width)
    blocks = [Block(w, True), Block(w), Block(2 * w, True), Block(2 * w), Block(2 * w, True), Block(2 * w)]
    options = NetOptions(size, channels, labels, numbers, activation, spectral_norm, dropout)
    return _recommend(ResidualEnergy("igebm-resnet32", blocks, options, first=w), 10, max_gradient=0.01)


def igebm_resnet32_large(
    *,
    size: int = 32,
    channels: int = 3,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 128,
    activation: Activation = "leaky-relu",
    spectral_norm: bool = True,
    dropout: float = 0.5,
) -> ImageEnergy:
    """Builds ResNet32Large, the paper's unconditional network for CIFAR-10: nine residual blocks, with dropout.

    Args:
        size: Height and width, a multiple of 8.
        channels: Channels of an image.
        labels: Number of labels; None for an unconditional energy.
        numbers: Number of real conditions of each image, such as 2 for a position; None for none.
        width: Channels of the first blocks; the last ones have four times as many.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether to bound spectral norms by 1.
        dropout: Fraction of features that a block drops in training.
    """
    w = check_integer("width", width)
    options = NetOptions(size, channels, labels, numbers, activation, spectral_norm, dropout)
    return _recommend(ResidualEnergy("igebm-resnet32-large", _nine_blocks(w), options, first=w), 10, max_gradient=0.01)


def igebm_resnet32_wider(
    *,
    size: int = 32,
    channels: int = 3,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 192,
    activation: Activation = "leaky-relu",
    spectral_norm: bool = True,
    dropout: float = 0.5,
) -> ImageEnergy:
    """Builds ResNet32Wider: ResNet32Large with 192 channels for CIFAR-10, or 256 for ImageNet, after a first convolution of 128.

    Args:
        size: Height and width, a multiple of 8.
        channels: Channels of an image.
        labels: Number of labels; None for an unconditional energy.
        numbers: Number of real conditions of each image, such as 2 for a position; None for none.
        width: Channels of the first blocks; the last ones have four times as many.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether to bound spectral norms by 1.
        dropout: Fraction of features that a block drops in training.
    """
    blocks = _nine_blocks(check_integer("width", width))
    options = NetOptions(size, channels, labels, numbers, activation, spectral_norm, dropout)
    return _recommend(ResidualEnergy("igebm-resnet32-wider", blocks, options, first=128), 10, max_gradient=0.01)


def igebm_mnist(
    *,
    size: int = 28,
    channels: int = 1,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 64,
    activation: Activation = "leaky-relu",
    spectral_norm: bool = True,
) -> ImageEnergy:
    """Builds the paper's network for MNIST: a convolution and three that halve the size, then two linear layers.

    Args:
        size: Height and width, any.
        channels: Channels of an image.
        labels: Number of labels; None for an unconditional energy. The released code appends the label to the image; here it sets gains
            and biases, as in the other networks.
        numbers: Number of real conditions of each image, such as 2 for a position; None for none.
        width: Channels of the first halving convolution; the others have 2 and 4 times as many. The convolution before has 64.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether to bound spectral norms by 1.
    """
    w = check_integer("width", width)
    options = NetOptions(size, channels, labels, numbers, activation, spectral_norm)
    return ConvolutionalEnergy("igebm-mnist", [64, w, 2 * w, 4 * w], options, dense=2 * w)


def igebm_dsprites(
    *,
    size: int = 64,
    channels: int = 1,
    labels: int | None = None,
    numbers: int | None = None,
    width: int = 64,
    activation: Activation = "swish",
    spectral_norm: bool = True,
) -> ImageEnergy:
    """Builds the paper's network for dSprites: a convolution and four that halve the size, then two linear layers.

    The paper has one network per factor: shape (`labels=3`), size (`numbers=1`), position (`numbers=2`), or rotation as cosine and sine
    (`numbers=2`). Its gains and biases are linear in these numbers; here they also depend on sines and cosines of them.

    Args:
        size: Height and width, any.
        channels: Channels of an image.
        labels: Number of labels; None for an unconditional energy.
        numbers: Number of real conditions of each image, such as 2 for a position; None for none.
        width: Channels of the first halving convolution; the others have twice as many. The convolution before has 32.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether to bound spectral norms by 1.
    """
    w = check_integer("width", width)
    options = NetOptions(size, channels, labels, numbers, activation, spectral_norm)
    return _recommend(ConvolutionalEnergy("igebm-dsprites", [32, w, 2 * w, 2 * w, 2 * w], options, dense=2 * w), 500)


def _nine_blocks(w: int) -> list[Block]:
    return [Block(width, halves) for width in (w, 2 * w, 4 * w) for halves in (True, False, False)]


def _recommend(energy: ImageEnergy, step: float, *, max_gradient: float | None = None) -> ImageEnergy:
    energy.recommended = recommend_langevin(step, 0.005, max_gradient=max_gradient)
    return energy
