r"""The network of Improved contrastive divergence training of energy based models (Du et al., 2021), https://arxiv.org/abs/2012.01316.

Three towers read the image at full, half and quarter size; the energy is the sum of theirs. A tower is a convolution, blocks, an
activation, mean pooling, and a linear head. A block is twice [3 x 3 convolution, instance norm (group norm above 128 channels), gain and
bias of the label, activation] with a skip. A block that halves the size adds a convolution that may double the channels, the mean of 3 x 3
pixels with stride 2, and an activation. Norms are per image, so the energy of an image does not depend on the rest of its batch.
"""

import itertools
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from composable_energy.errors import OptionError
from composable_energy.options import check_choice, check_integer
from composable_energy_image.energy import Activation, ImageEnergy, activation_of, check_multiple, recommend_langevin
from composable_energy_image.layers import PerLabel, convolution


class _Architecture(NamedTuple):
    """A network of the paper. A tower lists its first channels, in units of the width, and each block's, with `d` if it halves the size."""

    size: int
    width: int
    towers: tuple[str, str, str]
    attention_after: int
    step: float


_ARCHITECTURES = {
    "cifar10": _Architecture(32, 64, ("1 1 1d 1 2d 2 4d 4 8d", "1 1 1d 1 2d 2 4d", "1 1 1d 1 2d"), 4, 100.0),
    "celeba": _Architecture(128, 128, ("1/2 1d 1d 1d 2d 2 4d 4 8d", "1 1d 1d 1d 2d 2d 4d", "1 1d 1d 1d 2d"), 6, 500.0),
}


class ImprovedCDEnergy(ImageEnergy):
    r"""The network of improved contrastive divergence for images (Du et al., 2021).

    It recommends the paper's sampler, steps $x' = \text{clamp}(x - a \nabla E + .001\, \xi)$.

    `channels`, `labels` and `numbers` are those of `ImageEnergy`.

    Args:
        setting: `cifar10` or `celeba`, the paper's two networks.
        size: Height and width, at least 9 for `cifar10`, and 65 for `celeba` (33 with one tower); None for 32 and 128.
        width: Channels of the first blocks; None for 64 and 128.
        multiscale: Whether to use three towers, or one.
        attention: Whether the first tower has a self-attention layer.
        activation: `leaky-relu`, `relu` or `swish`.
        spectral_norm: Whether to bound spectral norms of the two convolutions of a block by 1; otherwise their weights are standardized.

    Raises:
        OptionError: An option is out of range.
    """

    def __init__(
        self,
        *,
        setting: Literal["cifar10", "celeba"] = "cifar10",
        size: int | None = None,
        channels: int = 3,
        labels: int | None = None,
        numbers: int | None = None,
        width: int | None = None,
        multiscale: bool = True,
        attention: bool = True,
        activation: Activation = "swish",
        spectral_norm: bool = True,
    ) -> None:
        native = _ARCHITECTURES[check_choice("setting", setting, list(_ARCHITECTURES))]
        size = native.size if size is None else size
        width = native.width if width is None else width
        check_multiple("width", width, 4, "attention has an eighth of twice as many channels")
        if wide := [w for w in (width, 2 * width, 4 * width) if w > 128 and w % 32]:
            raise OptionError(f"width must give multiples of 32 for all channels above 128, for group norms; {width} gives {wide}.")
        towers = native.towers if multiscale else native.towers[:1]
        check_integer("size", size, max(2 ** (i + plan.count("d") - 1) for i, plan in enumerate(towers)) + 1)  # norms need two pixels
        super().__init__("improved-cd", size=size, channels=channels, labels=labels, numbers=numbers)
        options: dict[str, Any] = {"rows": self.rows, "activation": activation, "spectral": spectral_norm}
        after = [native.attention_after if attention else None, None, None]  # the first tower alone has attention
        pairs = zip(towers, after, strict=False)
        self.towers = nn.ModuleList(_Tower(plan, channels, width, attention_after=at, **options) for plan, at in pairs)
        self.recommended = recommend_langevin(native.step, 0.001)

    def energies(self, x: Tensor, y: Tensor | None) -> Tensor:
        total = self.towers[0](x, y)
        for tower in self.towers[1:]:
            x = _half(x)
            total = total + tower(x, y)
        return total


class _Tower(nn.Module):
    def __init__(
        self, plan: str, channels: int, width: int, *, rows: int | None, activation: str, spectral: bool, attention_after: int | None
    ) -> None:
        super().__init__()
        first, *blocks = plan.split()
        widths = [width // 2 if first == "1/2" else width, *(width * int(block.rstrip("d")) for block in blocks)]
        self.activation = activation_of(activation)
        self.read = convolution(channels, widths[0], bias=True, spectral=False)
        self.blocks = nn.ModuleList(
            _Block(inputs, outputs, "d" in block, rows=rows, activation=activation, spectral=spectral)
            for (inputs, outputs), block in zip(itertools.pairwise(widths), blocks, strict=True)
        )
        self.attention_after = attention_after
        self.attention = None if attention_after is None else _SelfAttention(widths[attention_after])
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = self.activation(self.read(x))
        for i, block in enumerate(self.blocks, 1):
            h = block(h, y)
            if self.attention is not None and i == self.attention_after:
                h = self.attention(h)
        return self.head(self.activation(h).mean((2, 3))).squeeze(1)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, halves: bool, *, rows: int | None, activation: str, spectral: bool) -> None:
        super().__init__()
        self.activation = activation_of(activation)
        self.inner = _NormedConvolution(inputs, rows=rows, spectral=spectral)
        self.outer = _NormedConvolution(inputs, rows=rows, spectral=spectral)
        self.halve = convolution(inputs, outputs, bias=True, spectral=False) if halves else None

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        h = h + self.activation(self.outer(self.activation(self.inner(h, y)), y))
        return h if self.halve is None else self.activation(_half(self.halve(h)))


class _NormedConvolution(nn.Module):
    """A convolution, a norm over one image, and the gain and bias of the label."""

    def __init__(self, width: int, *, rows: int | None, spectral: bool) -> None:
        super().__init__()
        self.convolution = convolution(width, width, bias=True) if spectral else _Standardized(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(width if width <= 128 else 32, width)  # a group of one channel is an instance norm
        self.gain = None if rows is None else PerLabel(width, rows, 1.0)
        self.bias = None if rows is None else PerLabel(width, rows, 0.0)

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        h = self.norm(self.convolution(h))
        return h if self.gain is None or self.bias is None else self.gain(y) * h + self.bias(y)


class _Standardized(nn.Conv2d):
    """A convolution whose weights of each output have mean 0 and standard deviation 1 (Qiao et al., 2019), arXiv:1903.10520."""

    def forward(self, h: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return conv2d(h, (self.weight - mean) / (deviation + 1e-5), self.bias, padding=1)


class _SelfAttention(nn.Module):
    """Self-attention over pixels (Zhang et al., 2018), arXiv:1805.08318; its gain starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Conv2d(width, width // 8, 1) for _ in range(2))
        self.value = nn.Conv2d(width, width, 1)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = (part(h).flatten(2) for part in (self.query, self.key, self.value))
        return h + self.gain * (value @ (query.transpose(1, 2) @ key).softmax(2).transpose(1, 2)).view_as(h)


def _half(h: Tensor) -> Tensor:
    return avg_pool2d(h, 3, stride=2, padding=1)
