r"""Plain convolutional networks, for images of one channel (Du & Mordatch, 2019, appendix), https://arxiv.org/abs/1903.08689.

A 3 x 3 convolution, then 4 x 4 convolutions with stride 2, each $a(g \cdot A(h + b))$ with activation $a$, gain $g$ and bias $b$ per
channel and label, then a linear layer, and a linear head.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn.functional import pad

from composable_energy.options import check_integer
from composable_energy_image.arguments import activation_of
from composable_energy_image.energy import ImageEnergy, NetOptions
from composable_energy_image.layers import PerLabel, convolution, linear


class ConvolutionalEnergy(ImageEnergy):
    """The energy of a plain convolutional network; see the module.

    Args:
        name: Name in the registry.
        widths: Channels of the first convolution, and of those that halve the size, rounding up.
        options: Options of the network. Spectral norms of all layers but the head are bounded; there is no dropout.
        dense: Outputs of the linear layer.

    Raises:
        OptionError: An option is out of range.
    """

    def __init__(self, name: str, widths: list[int], options: NetOptions, *, dense: int) -> None:
        size, channels, spectral = check_integer("size", options.size), options.channels, options.spectral_norm
        super().__init__(name, size=size, channels=channels, labels=options.labels, numbers=options.numbers)
        self.activation = activation_of(options.activation)
        self.read = convolution(channels, widths[0], spectral=spectral)
        self.halvings = nn.ModuleList(
            _Halving(inputs, outputs, rows=self.rows, spectral=spectral) for inputs, outputs in itertools.pairwise(widths)
        )
        side = -(-size // 2 ** len(self.halvings))  # halving rounds up
        self.dense = linear(widths[-1] * side**2, dense, spectral=spectral)
        self.head = nn.Linear(dense, 1)

    def energies(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.activation(self.read(x))
        for halving in self.halvings:
            h = self.activation(halving(h, y))
        return self.head(self.activation(self.dense(h.flatten(1)))).squeeze(1)


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
