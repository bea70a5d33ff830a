r"""Networks that are conditioned on a noise level: of points, and a U-Net of pixels.

Notation: $z$ is a point of unit variance, $x$ a picture whose pixels have the standard deviation $s$, and $\sigma$ a noise level. Inputs
at level $\sigma$ are $z + \sigma \xi$ or $x + \sigma \xi$ with Gaussian $\xi$. Networks read points times $c = (1 + \sigma^2)^{-1/2}$, and
pictures as $u = c (x - \tfrac12)$ with $c = (s^2 + \sigma^2)^{-1/2}$, which have unit variance at every level.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import interpolate

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy_image.energy import Activation, ImageEnergy, activation_of, check_multiple

EMBEDDING = 32
"""Numbers in the embedding of a noise level."""

_HIDDEN = 128


class NoiseConditionedMLP(nn.Module):
    """A residual network of points whose blocks are scaled and shifted by the noise level and an optional condition (FiLM).

    If all points share one level, as in sampling, it is embedded once. All outputs are zero before training.
    """

    frequencies: Tensor

    def __init__(self, inputs: int, outputs: int, *, width: int, blocks: int, conditions: int = 0) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequency_table(), persistent=False)
        self.embed = nn.Sequential(nn.Linear(EMBEDDING + conditions, _HIDDEN), nn.SiLU())
        self.read = nn.Linear(inputs, width)
        self.film = nn.ModuleList(nn.Linear(_HIDDEN, 2 * width) for _ in range(blocks))
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.write = nn.Linear(width, outputs)
        with torch.no_grad():
            for name, parameter in self.film.named_parameters():
                parameter.mul_(0.3 if name.endswith("weight") else 1.0)
            for layer in (*self.outer, self.write):
                for parameter in layer.parameters():
                    parameter.zero_()

    def forward(self, points: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Returns values with shape $(B, outputs)$ of points with shape $(B, inputs)$ at levels with shape $(B, 1)$ or $(1, 1)$."""
        embedded = embed_level(sigma, self.frequencies)
        if condition is not None:
            embedded = torch.cat([embedded.expand(len(condition), -1), condition], 1)
        embedded = self.embed(embedded)
        h = self.read(points)
        for film, inner, outer in zip(self.film, self.inner, self.outer, strict=True):
            scale, shift = film(embedded).chunk(2, 1)
            h = h + outer(F.silu(torch.addcmul(shift, inner(F.silu(h)), 1 + scale)))
        return self.write(F.silu(h))


def frequency_table() -> Tensor:
    """Returns the frequencies of the embedding of noise levels, with shape $(16,)$."""
    return torch.exp(torch.linspace(math.log(0.125), math.log(5.0), EMBEDDING // 2))


def embed_level(sigma: Tensor, frequencies: Tensor) -> Tensor:
    """Returns sines and cosines of log noise levels, with shape $(B, 32)$, for levels with shape $(B, 1)$ or $(1, 1)$."""
    angles = sigma.log() * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def level_column(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Returns noise levels as a column: shape $(1, 1)$ for a number, a 0-d tensor or one value expanded to a vector, else $(B, 1)$."""
    if isinstance(sigma, Tensor) and sigma.ndim == 1 and sigma.stride(0) == 0:
        sigma = sigma[:1]
    return torch.as_tensor(sigma, dtype=like.dtype, device=like.device).reshape(-1, 1)


class UNetEnergy(ImageEnergy):
    r"""The energy of images at a noise level by a U-Net, $E(x, \sigma) = \tfrac12 |u|^2 + \langle u, f(u, \sigma) \rangle / (\sigma c)$.

    With this form $\sigma \nabla E = \sigma u c + f + J_f^\top u$: the network has unit scale at every level, and before training, when
    $f = 0$, the energy is that of normal pixels. It is trained by matching $\sigma \nabla E(x + \sigma \xi, \sigma)$ to $\xi$ (Song &
    Ermon, 2019, https://arxiv.org/abs/1907.05600; for energies, Salimans & Ho, 2021, https://openreview.net/forum?id=9AS-TF2jRNb).

    It recommends the sampler `annealed` over its noise levels; the best numbers of levels and corrector steps depend on the data.

    `channels`, `labels` and `numbers` are those of `ImageEnergy`.

    Args:
        size: Height and width of an image, a multiple of 2 for each level of the U-Net but the first.
        width: Channels at full size; at each level twice as many, up to four times.
        levels: Sizes at which the U-Net works, each half of the one before.
        blocks: Residual blocks at each level, on the way down and on the way up.
        activation: `leaky-relu`, `relu` or `swish`. Training needs second derivatives, which only swish has.
        dropout: The fraction of features that a block drops in training.
        data_std: $s$, in units of $x$.
        sigma_min: The lowest noise level, and the default.
        sigma_max: The highest noise level, far above the distances between images.

    Raises:
        OptionError: An option is out of range.
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
        activation: Activation = "swish",
        dropout: float = 0.0,
        data_std: float = 0.25,
        sigma_min: float = 0.01,
        sigma_max: float = 10.0,
    ) -> None:
        check_multiple("size", size, 2 ** (min(check_integer("levels", levels), 64) - 1), "the U-Net halves it between its levels")
        super().__init__("energy-unet", size=size, channels=channels, labels=labels, numbers=numbers)
        if not 0 < sigma_min < sigma_max < math.inf or not 0 < data_std < math.inf:
            raise OptionError(f"Levels need 0 < sigma_min < sigma_max, and data_std > 0; got {sigma_min!r}, {sigma_max!r}, {data_std!r}.")
        self.sigma_min, self.sigma_max, self.data_std = float(sigma_min), float(sigma_max), float(data_std)
        self.net = UNet(channels, self.rows, width=width, levels=levels, blocks=blocks, activation=activation, dropout=dropout)
        options = {"levels": 40, "sigma_max": self.sigma_max, "sigma_min": self.sigma_min, "corrector_steps": 1, "delta": 0.1}
        self.recommended = ce.Recommendation("annealed", options)

    @property
    def conditions(self) -> frozenset[str]:
        return frozenset({"sigma"}) | self.required_conditions

    def energies(self, x: Tensor, y: Tensor | None, sigma: Tensor | float | None = None) -> Tensor:
        level = level_column(self.sigma_min if sigma is None else sigma, x)
        scale = (self.data_std**2 + level * level).rsqrt()
        u = (x - 0.5) * scale[:, :, None, None]
        return (u.square() / 2).flatten(1).sum(1) + (u * self.net(u, level, y)).flatten(1).sum(1) / (level * scale).squeeze(1)


class UNet(nn.Module):
    """A U-Net from images to images of the same shape, conditioned on a noise level and a label (FiLM). Its output is zero before training.

    Options are those of `UNetEnergy`; `rows` are the numbers in the condition of an image, None for no condition.
    """

    frequencies: Tensor

    def __init__(self, channels: int, rows: int | None, *, width: int, levels: int, blocks: int, activation: str, dropout: float) -> None:
        super().__init__()
        check_integer("blocks", blocks)
        widths = [check_integer("width", width) * min(2**i, 4) for i in range(levels)]
        self.register_buffer("frequencies", frequency_table(), persistent=False)
        self.embed = nn.Linear(EMBEDDING, _HIDDEN)
        self.label = None if rows is None else nn.Parameter(torch.zeros(rows, _HIDDEN))
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
        embedded = self.embed(embed_level(level, self.frequencies))
        embedded = self.activation(embedded if y is None or self.label is None else embedded + y @ self.label)
        h, skips = self.read(u), []
        for i, blocks in enumerate(self.down):
            h = self.shrink[i - 1](h) if i else h
            h = _apply(blocks, h, embedded)
            skips.append(h)
        for i in reversed(range(len(self.up))):
            h = skips[i] + self.grow[i](interpolate(h, scale_factor=2.0, mode="nearest"))
            h = _apply(self.up[i], h, embedded)
        return self.write(self.activation(h))


class _Block(nn.Module):
    """A residual block that starts as the identity."""

    def __init__(self, width: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.activation = activation_of(activation)
        self.dropout = nn.Dropout(check_number("dropout", dropout, least=0, below=1))
        self.film = nn.Linear(_HIDDEN, 2 * width)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.film.weight.mul_(0.3)
            for parameter in self.outer.parameters():
                parameter.zero_()

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        scale, shift = self.film(embedded)[:, :, None, None].chunk(2, 1)
        return h + self.outer(self.dropout(self.activation(torch.addcmul(shift, self.inner(self.activation(h)), 1 + scale))))


def _apply(blocks: object, h: Tensor, embedded: Tensor) -> Tensor:
    for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
        h = block(h, embedded)
    return h
