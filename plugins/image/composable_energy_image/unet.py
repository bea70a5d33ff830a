r"""A noise-conditional energy of pixels: a U-Net at every noise level.

Notation: $\sigma$ is a noise level. The energy at level $\sigma$ is that of images $x + \sigma \xi$ with Gaussian $\xi$, so the net reads
$u = c (x - \tfrac12)$ with $c = (s^2 + \sigma^2)^{-1/2}$ and the standard deviation $s$ of pixels: it has unit variance at every level.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_image.arguments import activation_of, check_fraction, check_integer, check_multiple
from composable_energy_image.energy import ImageEnergy

__all__ = ["UNet", "UNetEnergy"]

_FREQUENCIES, _EMBEDDED = 16, 128


class UNetEnergy(ImageEnergy):
    r"""The energy $E(x, \sigma) = \tfrac12 |u|^2 + \langle u, f(u, \sigma) \rangle / (\sigma c)$ with a U-Net $f$; for $u$ see the module.

    With this form $\sigma \nabla E = \sigma u c + f + J_f^\top u$: the net has unit scale at every level, and before training, when
    $f = 0$, the energy is that of normal pixels. It is learnt by matching $\sigma \nabla E(x + \sigma \xi, \sigma)$ to $\xi$ (Song & Ermon,
    2019, https://arxiv.org/abs/1907.05600; for energies, Salimans & Ho, 2021, https://openreview.net/forum?id=9AS-TF2jRNb).

    It recommends the sampler `annealed` over its noise levels; how many levels and corrections serve best depends on the data.

    Args:
        size: Height and width of an image, a multiple of 2 for each level of the U-Net but the first.
        channels: Channels of an image.
        labels: How many labels there are; None for an unconditional energy.
        numbers: How many numbers each image is told instead, such as 2 for a position; None for none.
        width: Channels at full size; at each level twice as many, up to four times.
        levels: Sizes at which the U-Net works, each half of the one before.
        blocks: Residual blocks at each level, on the way down and on the way up.
        activation: `leaky-relu`, `relu` or `swish`; training needs second derivatives, which only swish has.
        dropout: The fraction of features that a block drops in training.
        data_std: $s$, in units of $x$.
        sigma_min: The lowest noise level, that where none is given.
        sigma_max: The highest, far above what images differ by.

    Attributes:
        sigma_min: The lowest noise level.
        sigma_max: The highest.

    Raises:
        OptionError: The net cannot take an option.
    """

    def __init__(
        self,
        *,
        size: int = 32,
        channels: int = 3,
        labels: int | None = None,
        numbers: int | None = None,
        width: int = 32,
        levels: int = 3,
        blocks: int = 1,
        activation: str = "swish",
        dropout: float = 0.0,
        data_std: float = 0.25,
        sigma_min: float = 0.01,
        sigma_max: float = 10.0,
    ) -> None:
        check_multiple("size", size, 2 ** (check_integer("levels", levels) - 1), "the U-Net halves it between its levels")
        super().__init__("energy-unet", size=size, channels=channels, labels=labels, numbers=numbers)
        if not 0 < sigma_min < sigma_max < math.inf or not 0 < data_std < math.inf:
            raise OptionError(
                f"Noise levels and data_std are positive, and sigma_min is the lower level; got {sigma_min!r}, {sigma_max!r}, {data_std!r}."
            )
        self.sigma_min, self.sigma_max, self.data_std = float(sigma_min), float(sigma_max), float(data_std)
        self.net = UNet(channels, self.rows, width=width, levels=levels, blocks=blocks, activation=activation, dropout=dropout)
        options = {"levels": 40, "sigma_max": self.sigma_max, "sigma_min": self.sigma_min, "corrector_steps": 1, "delta": 0.1}
        self.recommended = ce.Recommendation("annealed", options)

    @property
    def conditions(self) -> frozenset[str]:
        return frozenset({"sigma"}) | self.required_conditions

    def energies(self, x: Tensor, y: Tensor | None, sigma: Tensor | float | None = None) -> Tensor:
        level = _column(self.sigma_min if sigma is None else sigma, x)
        scale = (self.data_std**2 + level * level).rsqrt()
        u = (x - 0.5) * scale[:, :, None, None]
        return (u.square() / 2).flatten(1).sum(1) + (u * self.net(u, level, y)).flatten(1).sum(1) / (level * scale).squeeze(1)


class UNet(nn.Module):
    """A net from images to images of the same shape, which are zero before training; a noise level and a label scale and shift its blocks.

    Args:
        channels: Channels of an image.
        rows: How long the vectors are that it is told of images; None for none.
        width: Channels at full size; at each level twice as many, up to four times.
        levels: Sizes, each half of the one before.
        blocks: Residual blocks at each level, on the way down and on the way up.
        activation: Its name.
        dropout: The fraction of features that a block drops in training.
    """

    frequencies: Tensor

    def __init__(self, channels: int, rows: int | None, *, width: int, levels: int, blocks: int, activation: str, dropout: float) -> None:
        super().__init__()
        check_integer("blocks", blocks)
        widths = [check_integer("width", width) * min(2**i, 4) for i in range(levels)]
        frequencies = torch.exp(torch.linspace(math.log(0.125), math.log(5.0), _FREQUENCIES))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed = nn.Linear(2 * _FREQUENCIES, _EMBEDDED)
        self.label = None if rows is None else nn.Parameter(torch.zeros(rows, _EMBEDDED))
        self.activation = activation_of(activation)
        self.read = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.ModuleList(_Block(w, activation, dropout) for _ in range(blocks)) for w in widths)
        self.up = nn.ModuleList(nn.ModuleList(_Block(w, activation, dropout) for _ in range(blocks)) for w in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.write = nn.Conv2d(widths[0], channels, 3, padding=1)
        with torch.no_grad():
            for parameter in self.write.parameters():
                parameter.zero_()

    def forward(self, u: Tensor, level: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns images with shape $(B, C, H, W)$ of images at levels with shape $(B, 1)$ or $(1, 1)$."""
        angles = level.log() * self.frequencies
        embedded = self.embed(torch.cat([angles.sin(), angles.cos()], 1))
        embedded = self.activation(embedded if y is None or self.label is None else embedded + y @ self.label)
        h, skips = self.read(u), []
        for i, blocks in enumerate(self.down):
            h = self.shrink[i - 1](h) if i else h
            h = _through(blocks, h, embedded)
            skips.append(h)
        for i in reversed(range(len(self.up))):
            h = skips[i] + self.grow[i](interpolate(h, scale_factor=2.0, mode="nearest"))
            h = _through(self.up[i], h, embedded)
        return self.write(self.activation(h))


class _Block(nn.Module):
    """A residual block that starts as its skip."""

    def __init__(self, width: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.activation = activation_of(activation)
        self.dropout = nn.Dropout(check_fraction("dropout", dropout))
        self.film = nn.Linear(_EMBEDDED, 2 * width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.film.weight.mul_(0.3)
            for parameter in self.outer.parameters():
                parameter.zero_()

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        scale, shift = self.film(embedded)[:, :, None, None].chunk(2, 1)
        inner = torch.addcmul(shift, self.inner(self.activation(h)), 1 + scale)
        return h + self.outer(self.dropout(self.activation(inner)))


def _through(blocks: object, h: Tensor, embedded: Tensor) -> Tensor:
    for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
        h = block(h, embedded)
    return h


def _column(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Levels with shape $(1, 1)$ from a number or one value for all, which is then embedded once, else $(B, 1)$."""
    if isinstance(sigma, Tensor) and sigma.ndim == 1 and sigma.stride(0) == 0:
        sigma = sigma[:1]
    return torch.as_tensor(sigma, dtype=like.dtype, device=like.device).reshape(-1, 1)
