r"""Plain convolutional nets, for images of one channel (Du & Mordatch, 2019, appendix), https://arxiv.org/abs/1903.08689.

A 3 x 3 convolution, then 4 x 4 ones with stride 2, each $a(g \cdot A(h + b))$ with an activation $a$ and with gain $g$ and bias $b$ for
each channel and label, then a linear layer, and a linear head.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn.functional import pad

from composable_energy_image.arguments import activation_of, check_integer
from composable_energy_image.energy import ImageEnergy
from composable_energy_image.layers import PerLabel, convolution, linear

__all__ = ["ConvolutionalEnergy"]


class ConvolutionalEnergy(ImageEnergy):
    """See the module.

    Args:
        name: By which the registry knows it.
        widths: Channels of the first convolution, and of those that halve the size, rounding up.
        dense: Numbers that the linear layer writes.
        size: Height and width of an image.
        channels: Channels of an image.
        labels: How many labels there are; None for an unconditional energy.
        numbers: How many numbers each image is told instead; None for none.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether spectral norms of all layers but the head are bounded by 1.

    Raises:
        OptionError: The net cannot take an option.
    """

    def __init__(
        self,
        name: str,
        widths: list[int],
        *,
        dense: int,
        size: int,
        channels: int,
        labels: int | None,
        numbers: int | None = None,
        activation: str,
        spectral_norm: bool,
    ) -> None:
        super().__init__(name, size=check_integer("size", size), channels=channels, labels=labels, numbers=numbers)
        self.activation = activation_of(activation)
        self.read = convolution(channels, widths[0], spectral=spectral_norm)
        self.halvings = nn.ModuleList(
            _Halving(inputs, outputs, rows=self.rows, spectral=spectral_norm) for inputs, outputs in itertools.pairwise(widths)
        )
        left = -(-size // 2 ** len(self.halvings))  # halving rounds up
        self.dense = linear(widths[-1] * left**2, dense, spectral=spectral_norm)
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
