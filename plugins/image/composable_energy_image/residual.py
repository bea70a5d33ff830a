r"""Residual nets: the energy of Du & Mordatch (2019), which later papers share.

A block reads $h$ and gives, with an activation $a$, spectrally normalised 3 x 3 convolutions $A_1$, $A_2$ and skip $S$ (the identity, or
a third one where channels differ), and with gain $g$ and biases $b_1$, $b_2$ for each channel and label,

$$a(\text{pool}(S h + g \cdot A_2(a(\text{dropout}(A_1(h + b_1))) + b_2)))$$

where $A_2$ starts at zero and pooling, the mean of 2 x 2, is for blocks that halve the size.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from composable_energy_image.arguments import activation_of, check_fraction, check_multiple
from composable_energy_image.energy import ImageEnergy
from composable_energy_image.layers import PerLabel, convolution

__all__ = ["Block", "ResidualEnergy"]


class Block(NamedTuple):
    """A residual block: channels that it writes, and whether it halves the size."""

    channels: int
    halves: bool = False


class ResidualEnergy(ImageEnergy):
    r"""A convolution, residual blocks, an activation, the sum (or mean) over pixels, and a linear head: see the module.

    Args:
        name: By which the registry knows it.
        blocks: The residual blocks.
        first: Channels of the first convolution.
        pool: What is taken over pixels, `sum` or `mean`.
        size: Height and width of an image, a multiple of 2 for each block that halves it.
        channels: Channels of an image.
        labels: How many labels there are; None for an unconditional energy.
        numbers: How many numbers each image is told instead; None for none.
        activation: `leaky-relu`, `relu` or `swish`; the last one before the sum is ReLU in place of the leaky one, as in the paper.
        spectral_norm: Whether spectral norms of convolutions are bounded by 1.
        dropout: The fraction of features that a block drops in training.

    Raises:
        OptionError: The net cannot take an option.
    """

    def __init__(
        self,
        name: str,
        blocks: list[Block],
        *,
        first: int,
        pool: str = "sum",
        size: int,
        channels: int,
        labels: int | None,
        numbers: int | None = None,
        activation: str,
        spectral_norm: bool,
        dropout: float = 0.0,
    ) -> None:
        halvings = 2 ** sum(block.halves for block in blocks)
        check_multiple("size", size, halvings, "it is halved by blocks and must stay whole")
        super().__init__(name, size=size, channels=channels, labels=labels, numbers=numbers)
        self.pool = pool
        self.read = convolution(channels, first, spectral=spectral_norm)
        self.activation = activation_of(activation)
        self.last = activation_of("relu" if activation == "leaky-relu" else activation)
        before = [first, *(block.channels for block in blocks)]
        self.blocks = nn.ModuleList(
            _Residual(inputs, block, rows=self.rows, activation=activation, spectral=spectral_norm, dropout=dropout)
            for inputs, block in zip(before, blocks, strict=False)
        )
        self.head = nn.Linear(before[-1], 1)

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
        self.dropout = nn.Dropout(check_fraction("dropout", dropout))
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
