r"""The networks of two papers by name, each with the defaults and the sampler of its paper.

Implicit generation and modeling with energy-based models (Du & Mordatch, 2019), https://arxiv.org/abs/1903.08689: as in its appendix and
released code, every convolution has spectral normalization (one power iteration, target 1). Activations are leaky ReLU with slope .2, and
swish for dSprites. The paper samples with steps $x' = \text{clamp}(x - a \nabla E + .005\, \xi)$ to [0, 1], with $a$ = 10 for CIFAR-10,
where the gradient of a pixel is bounded by .01, and $a$ = 500 for dSprites. That is `langevin` with `step_size` $= 2 a$ and temperature
$.005^2 / 2 a$.

Compositional visual generation with energy based models (Du, Li & Mordatch, 2020), https://arxiv.org/abs/2004.06030: the same residual
networks with swish, one for each attribute, conditional on its value (`labels=2` for present and absent), and $a$ = 100.

A residual block maps $h$, with an activation $a$, 3 x 3 convolutions $A_1$, $A_2$, a skip $S$ (the identity, or a third convolution if
channels differ), and a gain $g$ and biases $b_1$, $b_2$ per channel and label, to

$$a(\text{pool}(S h + g \cdot A_2(a(\text{dropout}(A_1(h + b_1))) + b_2)))$$

where $A_2$ starts at zero, and only blocks that halve the size pool, by the mean of 2 x 2 pixels. The networks for MNIST and dSprites have
4 x 4 convolutions with stride 2 instead, $a(g \cdot A(h + b))$, and a linear layer before the head.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from composable_energy.options import check_integer, check_number
from composable_energy_image.energy import Activation, ImageEnergy, activation_of, check_multiple, recommend_langevin
from composable_energy_image.layers import PerLabel, convolution, linear


class _Network(NamedTuple):
    """A network of the papers. Its layers are the channels of each block in units of the width, with `d` where it halves the size."""

    about: str
    layers: str
    size: int
    width: int
    step: float | None = None
    max_gradient: float | None = None
    channels: int = 3
    activation: Activation = "swish"
    dropout: float | None = 0.0
    first: int | None = None
    residual: bool = True
    mean_pool: bool = False


_IGEBM: dict[str, Any] = {"step": 10, "max_gradient": 0.01, "activation": "leaky-relu"}
_PLAIN: dict[str, Any] = {"channels": 1, "dropout": None, "residual": False}
_NINE = "1d 1 1 2d 2 2 4d 4 4"
_NETWORKS = {
    "igebm-resnet32": _Network(
        "ResNet32, the paper's conditional network for CIFAR-10: six residual blocks.", "1d 1 2d 2 2d 2", 32, 128, **_IGEBM
    ),
    "igebm-resnet32-large": _Network(
        "ResNet32Large, the paper's unconditional network for CIFAR-10: nine residual blocks.", _NINE, 32, 128, dropout=0.5, **_IGEBM
    ),
    "igebm-resnet32-wider": _Network(
        "ResNet32Wider: ResNet32Large with 192 channels for CIFAR-10, or 256 for ImageNet, after a first convolution of 128.",
        _NINE,
        32,
        192,
        dropout=0.5,
        first=128,
        **_IGEBM,
    ),
    "igebm-mnist": _Network(
        """the paper's network for MNIST: a convolution and three that halve the size, then two linear layers.

    The released code appends a label to the image; here it sets gains and biases, as in the other networks.""",
        "1d 2d 4d",
        28,
        64,
        activation="leaky-relu",
        first=64,
        **_PLAIN,
    ),
    "igebm-dsprites": _Network(
        """the paper's network for dSprites: a convolution and four that halve the size, then two linear layers.

    The paper has one network per factor: shape (`labels=3`), size (`numbers=1`), position (`numbers=2`), or rotation as cosine and sine
    (`numbers=2`). Its gains and biases are linear in these numbers; here they also depend on sines and cosines of them.""",
        "1d 2d 2d 2d",
        64,
        64,
        step=500,
        first=32,
        **_PLAIN,
    ),
    "compositional-128": _Network(
        "the network for faces of 128 pixels: six residual blocks and sum pooling.", "1d 2d 4d 8d 8d 8", 128, 64, step=100
    ),
    "compositional-64": _Network(
        "the network for scenes of cubes: five residual blocks and mean pooling.", "1d 2d 2d 2 4d", 64, 64, step=100, mean_pool=True
    ),
}

_OPTIONS = """

    Args:
        size: Height and width; of a residual network a multiple of two to the number of blocks that halve it.
        channels: Channels of an image.
        labels: Number of labels; None for an unconditional energy.
        numbers: Number of real conditions of each image, such as 2 for a position; None for none.
        width: Channels of the first blocks, which later ones multiply; of the first convolution that halves the size.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether to bound spectral norms by 1.
        dropout: Fraction of features that a block drops in training, or a plain network before its head; None for none.
    """


class _Options(NamedTuple):
    size: int
    channels: int
    labels: int | None
    numbers: int | None
    width: int
    activation: str
    spectral: bool
    dropout: float


def _builder(name: str) -> Callable[..., ImageEnergy]:
    """Returns the function that builds a network of the table."""
    net = _NETWORKS[name]

    def build(
        *,
        size: int = net.size,
        channels: int = net.channels,
        labels: int | None = None,
        numbers: int | None = None,
        width: int = net.width,
        activation: Activation = net.activation,
        spectral_norm: bool = True,
        dropout: float | None = net.dropout,
    ) -> ImageEnergy:
        share = check_number("dropout", 0.0 if dropout is None else dropout, least=0, below=1)
        options = _Options(size, channels, labels, numbers, check_integer("width", width), activation, spectral_norm, share)
        energy = (ResidualEnergy if net.residual else PlainEnergy)(name, net, options)
        if net.step is not None:
            energy.recommended = recommend_langevin(net.step, 0.005, max_gradient=net.max_gradient)
        return energy

    build.__name__ = build.__qualname__ = name.replace("-", "_")
    build.__doc__ = f"Builds {net.about}{_OPTIONS}"
    return build


class ResidualEnergy(ImageEnergy):
    """A convolution, residual blocks, ReLU, pooling over pixels, and a linear head. Only this last activation is ReLU, as in the paper."""

    def __init__(self, name: str, net: _Network, options: _Options) -> None:
        check_multiple("size", options.size, 2 ** net.layers.count("d"), "it is halved by blocks and must stay whole")
        super().__init__(name, size=options.size, channels=options.channels, labels=options.labels, numbers=options.numbers)
        self.mean_pool = net.mean_pool
        widths = [net.first or options.width, *(options.width * int(block.rstrip("d")) for block in net.layers.split())]
        self.read = convolution(options.channels, widths[0], spectral=options.spectral)
        self.activation = activation_of(options.activation)
        self.last = activation_of("relu" if options.activation == "leaky-relu" else options.activation)
        blocks = zip(net.layers.split(), itertools.pairwise(widths), strict=True)
        self.blocks = nn.ModuleList(_Residual(a, b, "d" in block, self.rows, options) for block, (a, b) in blocks)
        self.head = nn.Linear(widths[-1], 1)

    def energies(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.activation(self.read(x))
        for block in self.blocks:
            h = block(h, y)
        h = self.last(h).flatten(2)
        return self.head(h.mean(2) if self.mean_pool else h.sum(2)).squeeze(1)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, halves: bool, rows: int | None, options: _Options) -> None:
        super().__init__()
        spectral = options.spectral
        self.halves = halves
        self.activation = activation_of(options.activation)
        self.dropout = nn.Dropout(options.dropout)
        self.bias = PerLabel(inputs, rows, 0.0)
        self.inner = convolution(inputs, outputs, spectral=spectral)
        self.inner_bias = PerLabel(outputs, rows, 0.0)
        self.outer = convolution(outputs, outputs, spectral=spectral, starts_at_zero=True)
        self.gain = PerLabel(outputs, rows, 1.0)
        self.skip = nn.Identity() if inputs == outputs else convolution(inputs, outputs, spectral=spectral)

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        inner = self.activation(self.dropout(self.inner(h + self.bias(y))))
        h = self.skip(h) + self.gain(y) * self.outer(inner + self.inner_bias(y))
        return self.activation(avg_pool2d(h, 2) if self.halves else h)


class PlainEnergy(ImageEnergy):
    """A convolution, convolutions that halve the size, rounding up, and two linear layers."""

    def __init__(self, name: str, net: _Network, options: _Options) -> None:
        super().__init__(name, size=options.size, channels=options.channels, labels=options.labels, numbers=options.numbers)
        widths = [net.first or options.width, *(options.width * int(block.rstrip("d")) for block in net.layers.split())]
        self.activation = activation_of(options.activation)
        self.dropout = nn.Dropout(options.dropout)
        self.read = convolution(options.channels, widths[0], spectral=options.spectral)
        self.halvings = nn.ModuleList(_Halving(*pair, rows=self.rows, spectral=options.spectral) for pair in itertools.pairwise(widths))
        side = -(-options.size // 2 ** len(self.halvings))
        self.dense = linear(widths[-1] * side**2, 2 * options.width, spectral=options.spectral)
        self.head = nn.Linear(2 * options.width, 1)

    def energies(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.activation(self.read(x))
        for halving in self.halvings:
            h = self.activation(halving(h, y))
        return self.head(self.dropout(self.activation(self.dense(h.flatten(1))))).squeeze(1)


class _Halving(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, rows: int | None, spectral: bool) -> None:
        super().__init__()
        self.bias = PerLabel(inputs, rows, 0.0)
        self.convolution = convolution(inputs, outputs, 4, stride=2, spectral=spectral)
        self.gain = PerLabel(outputs, rows, 1.0)

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        h = h + self.bias(y)
        h = pad(h, (0, 1, 0, 1)) if h.shape[-1] % 2 else h
        return self.gain(y) * self.convolution(h)


igebm_resnet32 = _builder("igebm-resnet32")
igebm_resnet32_large = _builder("igebm-resnet32-large")
igebm_resnet32_wider = _builder("igebm-resnet32-wider")
igebm_mnist = _builder("igebm-mnist")
igebm_dsprites = _builder("igebm-dsprites")
compositional_128 = _builder("compositional-128")
compositional_64 = _builder("compositional-64")
