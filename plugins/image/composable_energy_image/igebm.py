r"""The networks of two papers by name, each with the defaults and the sampler of its paper.

Implicit generation and modeling with energy-based models (Du & Mordatch, 2019), https://arxiv.org/abs/1903.08689: as in its appendix and
released code, every convolution has spectral normalization (one power iteration, target 1). Activations are leaky ReLU with slope .2, and
swish for dSprites. The paper samples with steps $x' = \text{clamp}(x - a \nabla E + .005\, \xi)$ to [0, 1], with $a$ = 10 for CIFAR-10,
where the gradient of a pixel is bounded by .01, and $a$ = 500 for dSprites. That is `langevin` with `step_size` $= 2 a$ and temperature
$.005^2 / 2 a$.

Compositional visual generation with energy based models (Du, Li & Mordatch, 2020), https://arxiv.org/abs/2004.06030: the same residual
networks with swish, one for each attribute, conditional on its value (`labels=2` for present and absent), and $a$ = 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from composable_energy.options import check_integer
from composable_energy_image.arguments import Activation
from composable_energy_image.convolutional import ConvolutionalEnergy
from composable_energy_image.energy import ImageEnergy, NetOptions
from composable_energy_image.recommendation import recommend_langevin
from composable_energy_image.residual import Block, ResidualEnergy

_OPTIONS = """

    Args:
        size: Height and width; of a residual network a multiple of two to the number of blocks that halve it.
        channels: Channels of an image.
        labels: Number of labels; None for an unconditional energy.
        numbers: Number of real conditions of each image, such as 2 for a position; None for none.
        width: Channels of the first blocks, which later ones multiply; of the first convolution that halves the size.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether to bound spectral norms by 1.
"""
_DROPOUT = "        dropout: Fraction of features that a block drops in training.\n"


def _residual(
    name: str,
    text: str,
    blocks: Sequence[tuple[int, bool]],
    size: int,
    width: int,
    activation: Activation = "leaky-relu",
    dropout: float = 0.0,
    *,
    step: float,
    max_gradient: float | None = None,
    first: int | None = None,
    pool: Literal["sum", "mean"] = "sum",
) -> Callable[..., ImageEnergy]:
    """Returns a builder of a residual network: for each block the multiple of `width`, and whether it halves the size."""

    def build(
        *,
        size: int = size,
        channels: int = 3,
        labels: int | None = None,
        numbers: int | None = None,
        width: int = width,
        activation: Activation = activation,
        spectral_norm: bool = True,
        dropout: float = dropout,
    ) -> ImageEnergy:
        w = check_integer("width", width)
        options = NetOptions(size, channels, labels, numbers, activation, spectral_norm, dropout)
        energy = ResidualEnergy(name, [Block(k * w, halves) for k, halves in blocks], options, first=first or w, pool=pool)
        energy.recommended = recommend_langevin(step, 0.005, max_gradient=max_gradient)
        return energy

    return _named(build, name, text, _OPTIONS + _DROPOUT)


def _convolutional(
    name: str, text: str, first: int, multiples: Sequence[int], size: int, activation: Activation, step: float | None
) -> Callable[..., ImageEnergy]:
    """Returns a builder of convolutions, the later ones with multiples of `width` as channels, and two linear layers."""

    def build(
        *,
        size: int = size,
        channels: int = 1,
        labels: int | None = None,
        numbers: int | None = None,
        width: int = 64,
        activation: Activation = activation,
        spectral_norm: bool = True,
    ) -> ImageEnergy:
        w = check_integer("width", width)
        options = NetOptions(size, channels, labels, numbers, activation, spectral_norm)
        energy = ConvolutionalEnergy(name, [first, *(k * w for k in multiples)], options, dense=2 * w)
        if step is not None:
            energy.recommended = recommend_langevin(step, 0.005)
        return energy

    return _named(build, name, text, _OPTIONS)


def _named(build: Callable[..., ImageEnergy], name: str, text: str, options: str) -> Callable[..., ImageEnergy]:
    build.__name__ = build.__qualname__ = name.replace("-", "_")
    build.__doc__ = f"{text}{options}    "
    return build


_NINE = [(k, halves) for k in (1, 2, 4) for halves in (True, False, False)]

igebm_resnet32 = _residual(
    "igebm-resnet32",
    "Builds ResNet32, the paper's conditional network for CIFAR-10: six residual blocks.",
    [(1, True), (1, False), (2, True), (2, False), (2, True), (2, False)],
    32,
    128,
    step=10,
    max_gradient=0.01,
)
igebm_resnet32_large = _residual(
    "igebm-resnet32-large",
    "Builds ResNet32Large, the paper's unconditional network for CIFAR-10: nine residual blocks, with dropout.",
    _NINE,
    32,
    128,
    dropout=0.5,
    step=10,
    max_gradient=0.01,
)
igebm_resnet32_wider = _residual(
    "igebm-resnet32-wider",
    "Builds ResNet32Wider: ResNet32Large with 192 channels for CIFAR-10, or 256 for ImageNet, after a first convolution of 128.",
    _NINE,
    32,
    192,
    dropout=0.5,
    step=10,
    max_gradient=0.01,
    first=128,
)
igebm_mnist = _convolutional(
    "igebm-mnist",
    """Builds the paper's network for MNIST: a convolution and three that halve the size, then two linear layers.

    The released code appends a label to the image; here it sets gains and biases, as in the other networks.""",
    64,
    (1, 2, 4),
    28,
    "leaky-relu",
    None,
)
igebm_dsprites = _convolutional(
    "igebm-dsprites",
    """Builds the paper's network for dSprites: a convolution and four that halve the size, then two linear layers.

    The paper has one network per factor: shape (`labels=3`), size (`numbers=1`), position (`numbers=2`), or rotation as cosine and sine
    (`numbers=2`). Its gains and biases are linear in these numbers; here they also depend on sines and cosines of them.""",
    32,
    (1, 2, 2, 2),
    64,
    "swish",
    500,
)
compositional_128 = _residual(
    "compositional-128",
    "Builds the network for faces of 128 pixels: six residual blocks, five of which halve the size, and sum pooling.",
    [(1, True), (2, True), (4, True), (8, True), (8, True), (8, False)],
    128,
    64,
    "swish",
    step=100,
)
compositional_64 = _residual(
    "compositional-64",
    "Builds the network for scenes of cubes of 64 pixels: five residual blocks, four of which halve the size, and mean pooling.",
    [(1, True), (2, True), (2, True), (2, False), (4, True)],
    64,
    64,
    "swish",
    step=100,
    pool="mean",
)
