r"""Residual networks: the energy of Du & Mordatch (2019), which later papers share.

A block maps $h$, with an activation $a$, spectrally normalized 3 x 3 convolutions $A_1$, $A_2$, a skip $S$ (the identity, or a third
convolution if channels differ), and a gain $g$ and biases $b_1$, $b_2$ per channel and label, to

$$a(\text{pool}(S h + g \cdot A_2(a(\text{dropout}(A_1(h + b_1))) + b_2)))$$

where $A_2$ starts at zero, and only blocks that halve the size pool, by the mean of 2 x 2 pixels.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from composable_energy.options import check_number
from composable_energy_image.arguments import activation_of, check_multiple
from composable_energy_image.energy import ImageEnergy, NetOptions
from composable_energy_image.layers import PerLabel, convolution


class Block(NamedTuple):
    """A residual block: its output channels, and whether it halves the size."""

    channels: int
    halves: bool = False


class ResidualEnergy(ImageEnergy):
    r"""The energy of a residual network: a convolution, residual blocks, an activation, pooling over pixels, and a linear head.

    Args:
        name: Name in the registry.
        blocks: The residual blocks.
        options: Options of the network. The size is a multiple of 2 for each block that halves it. The last activation, before pooling, is
            ReLU instead of leaky ReLU, as in the paper.
        first: Channels of the first convolution.
        pool: The pooling over pixels, `sum` or `mean`.

    Raises:
        OptionError: An option is out of range.
    """

    def __init__(self, name: str, blocks: list[Block], options: NetOptions, *, first: int, pool: str = "sum") -> None:
        size, channels, activation = options.size, options.channels, options.activation
        halvings = 2 ** sum(block.halves for block in blocks)
        check_multiple("size", size, halvings, "it is halved by blocks and must stay whole")
        super().__init__(name, size=size, channels=channels, labels=options.labels, numbers=options.numbers)
        self.pool = pool
        self.read = convolution(channels, first, spectral=options.spectral_norm)
        self.activation = activation_of(activation)
        self.last = activation_of("relu" if activation == "leaky-relu" else activation)
        widths = [first, *(block.channels for block in blocks)]
        self.blocks = nn.ModuleList(
            _Residual(inputs, block, rows=self.rows, activation=activation, spectral=options.spectral_norm, dropout=options.dropout)
            for inputs, block in zip(widths, blocks, strict=False)
        )
        self.head = nn.Linear(widths[-1], 1)

    def energies(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.activation(self.read(x))
        for block in self.blocks:
            h = block(h, y)
        h = self.last(h).flatten(2)
        return self.head(h.sum(2) if self.pool == "sum" else h.mean(2)).squeeze(1)


class _Residual(nn.Module):
    def __init__(self, inputs: int, block: Block, *, rows: int | None, activation: str, spectral: bool, dropout: float) -> None:
        super().__init__()
        outputs = block.channels
        self.halves = block.halves
        self.activation = activation_of(activation)
        self.dropout = nn.Dropout(check_number("dropout", dropout, least=0, below=1))
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
