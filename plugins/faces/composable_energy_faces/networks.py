r"""The networks of the faces: an autoencoder, the base energy over its code, the attribute heads, and the judge.

Notation: $x$ are pictures in [0, 1] with shape $(B, 3, 64, 64)$, $z$ codes with shape $(B, 64)$, $\sigma$ a noise level. An energy or a
head at level $\sigma$ speaks of $z + \sigma \xi$, where $z$ is the code of a face and $\xi$ is Gaussian, so it reads
$u = c z$ with $c = (1 + \sigma^2)^{-1/2}$, which has unit variance at every level.
"""

from __future__ import annotations

__all__ = ["CODE", "SIGMA_MAX", "SIGMA_MIN", "SIZE", "Autoencoder", "Base", "Heads", "Judge"]

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 64
"""Height and width of the pictures."""

CODE = 64
"""Numbers in a code."""

SIGMA_MIN, SIGMA_MAX = 0.05, 4.0
"""The noise levels that the energies know."""


class Autoencoder(nn.Module):
    """Pictures to codes of unit variance, and back.

    Called on codes it returns pictures, as the decoder of a latent energy does. Everything in the decoder happens at 16 x 16 or below,
    and the last layer writes blocks of 4 x 4 pixels: that is what makes it cheap.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(64, 96, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(96, 128, 4, 2, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, CODE),
        )
        self.standardize = nn.BatchNorm1d(CODE, affine=False, momentum=0.02)
        self.unfold = nn.Sequential(nn.Linear(CODE, 192), nn.SiLU(), nn.Linear(192, 128 * 4 * 4), nn.SiLU())
        self.at_4 = nn.Conv2d(128, 128, 3, 1, 1)
        self.to_8 = nn.ConvTranspose2d(128, 96, 4, 2, 1)
        self.at_8 = nn.Conv2d(96, 96, 3, 1, 1)
        self.to_16 = nn.ConvTranspose2d(96, 64, 4, 2, 1)
        self.at_16 = nn.Conv2d(64, 64, 3, 1, 1)
        self.to_64 = nn.Conv2d(64, 3 * 4 * 4, 3, 1, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes, with shape $(B, 64)$, of pictures with shape $(B, 3, 64, 64)$."""
        return self.standardize(self.encoder(images * 2 - 1))

    def paint(self, codes: Tensor) -> Tensor:
        """Returns pictures whose values may leave [0, 1], as training needs them."""
        h = self.unfold(codes).view(-1, 128, 4, 4)
        h = h + F.silu(self.at_4(h))
        h = F.silu(self.to_8(h))
        h = h + F.silu(self.at_8(h))
        h = F.silu(self.to_16(h))
        h = h + F.silu(self.at_16(h))
        return F.pixel_shuffle(self.to_64(h), 4) / 2 + 0.5

    def forward(self, codes: Tensor) -> Tensor:
        """Returns the pictures, in [0, 1] with shape $(B, 3, 64, 64)$, of codes with shape $(B, 64)$."""
        return self.paint(codes).clamp(0, 1)


class LeveledMLP(nn.Module):
    """A residual network that reads points and a noise level; its blocks are scaled and shifted by the level (FiLM).

    One level for the whole batch (the case when sampling) is embedded once.

    Args:
        inputs: Numbers in a point.
        outputs: Numbers returned for a point; all zero before training.
        width: Hidden units.
        blocks: Residual blocks.
        conditions: Numbers in an optional condition beside the level.
    """

    frequencies: Tensor

    def __init__(self, inputs: int, outputs: int, *, width: int, blocks: int, conditions: int = 0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(math.log(0.125), math.log(5.0), 16)), persistent=False)
        self.embed = nn.Sequential(nn.Linear(32 + conditions, 128), nn.SiLU())
        self.read = nn.Linear(inputs, width)
        self.film = nn.ModuleList(nn.Linear(128, 2 * width) for _ in range(blocks))
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
        angles = sigma.log() * self.frequencies
        embedded = torch.cat([angles.sin(), angles.cos()], 1)
        if condition is not None:
            embedded = torch.cat([embedded.expand(len(condition), -1), condition], 1)
        embedded = self.embed(embedded)
        h = self.read(points)
        for film, inner, outer in zip(self.film, self.inner, self.outer, strict=True):
            scale, shift = film(embedded).chunk(2, 1)
            h = h + outer(F.silu(torch.addcmul(shift, inner(F.silu(h)), 1 + scale)))
        return self.write(F.silu(h))


def _column(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Levels as a column: $(1, 1)$ from a number, a 0-d tensor or one value expanded to a vector, else $(B, 1)$."""
    if isinstance(sigma, Tensor) and sigma.ndim == 1 and sigma.stride(0) == 0:
        sigma = sigma[:1]
    return torch.as_tensor(sigma, dtype=like.dtype, device=like.device).reshape(-1, 1)


class Base(nn.Module):
    r"""The energy of any face, $B(z, \sigma) = \tfrac12 |u|^2 + \langle u, f(u, \sigma) \rangle / (\sigma c)$.

    With this form $\sigma \nabla_z B = \sigma z / (1 + \sigma^2) + f + J_f^T u$: the network $f$ has unit scale at every level.

    Args:
        width: Hidden units of $f$.
        blocks: Residual blocks of $f$.
        conditions: Numbers in an optional condition, for the conditional energies of the comparison.
    """

    def __init__(self, *, width: int = 256, blocks: int = 4, conditions: int = 0) -> None:
        super().__init__()
        self.net = LeveledMLP(CODE, CODE, width=width, blocks=blocks, conditions=conditions)

    def forward(self, z: Tensor, sigma: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """Returns energies with shape $(B,)$ of codes with shape $(B, 64)$ at levels with shape $()$ or $(B,)$."""
        sigma = _column(sigma, z)
        scale = (1 + sigma * sigma).rsqrt()
        u = z * scale
        energy = u * (u / 2 + self.net(u, sigma, condition) / (sigma * scale))
        return energy.sum(1)


class Heads(nn.Module):
    r"""The attributes' logits at every noise level: one column for each binary attribute, then one for each hair color.

    Args:
        outputs: Columns.
        width: Hidden units.
        blocks: Residual blocks.
    """

    def __init__(self, *, outputs: int = 9, width: int = 256, blocks: int = 2) -> None:
        super().__init__()
        self.net = LeveledMLP(CODE, outputs, width=width, blocks=blocks)

    def forward(self, z: Tensor, sigma: Tensor | float = SIGMA_MIN) -> Tensor:
        """Returns logits with shape $(B, outputs)$ of codes with shape $(B, 64)$ at levels with shape $()$ or $(B,)$."""
        sigma = _column(sigma, z)
        return self.net(z * (1 + sigma * sigma).rsqrt(), sigma)


class Judge(nn.Module):
    """An image classifier that scores samples; it is trained on other faces, and no gradient of it is used to train or sample."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 96)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(96 * 4 * 4, 9))

    def features(self, images: Tensor) -> Tensor:
        """Returns pooled features, with shape $(B, 96)$: what Frechet distances compare."""
        return self.body(images * 2 - 1).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits with shape $(B, 9)$: five binary attributes, four hair colors."""
        return self.classify(self.body(images * 2 - 1))
