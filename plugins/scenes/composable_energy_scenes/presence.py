r"""That an object stands somewhere, learnt from pictures of several objects of which only one is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.energy import WeightedBase
from composable_energy.errors import OptionError, ShapeError
from composable_energy_image.unet import UNet
from composable_energy_scenes.patches import CHANNELS, PATCHES, levels

__all__ = ["CELLS", "PlaceHead", "Presence", "cell_of"]

CELLS = 16
"""Cells of the floor on each side, each of 1/8 in the units of positions."""

_READ = 12  # channels from which the logits of cells are read
_WIDTH = 2 / CELLS


class PlaceHead(nn.Module):
    """Logits of where on the floor the told object is, given codes with noise: one for each cell, those of a row from left to right.

    Args:
        sigma_min: The level where none is given.
        width: Channels of its network.
    """

    def __init__(self, sigma_min: float = 0.05, width: int = 32) -> None:
        super().__init__()
        self.sigma_min = sigma_min
        self.net = UNet(_READ, None, width=width, levels=2, blocks=1, activation="swish", dropout=0.0)
        self.read = nn.Linear(_READ * PATCHES**2, CELLS**2)

    def forward(self, z: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns logits with shape $(B, 256)$ of codes with shape $(B, 4, 8, 8)$ at levels with shape $()$ or $(B,)$."""
        level = levels(self.sigma_min if sigma is None else sigma, z)
        u = z * (1 + level * level).rsqrt()[:, :, None, None]
        wide = F.pad(u, (0, 0, 0, 0, 0, _READ - CHANNELS))  # the network writes as many channels as it reads
        return self.read(F.silu(self.net(wide, level)).flatten(1))


def cell_of(position: Tensor) -> Tensor:
    """Returns the cells, with shape $(N,)$, in which positions with shape $(N, 2)$ lie."""
    column, row = ((position + 1) / _WIDTH).long().clamp(0, CELLS - 1).unbind(1)
    return row * CELLS + column


class Presence(ce.RelativeEnergy):
    r"""That an object stands at $c$, up to a Gaussian error $r$: $E(z \mid c) = \text{base}(z) - \log \frac{p(c \mid z)}{p(c)}$.

    Here $p(c \mid z) = \sum_k P(k \mid z)\, \mathcal N(c; m_k, r^2)$ is where the told object is: in training each picture has several
    objects and one of them, drawn by chance, is told; $k$ are the cells of the floor and $m_k$ their middles. $p(c)$ is the same for
    places drawn uniformly, so evidence is 0 where a picture says nothing.

    A picture with $m$ of its $K$ objects at $c$ has $p(c \mid z) \propto m / K$. Objects told in turn are independent given the picture, so
    `presence.near(a) & presence.near(b)` adds evidences and means an object at $a$ and one at $b$. (Events of one variable, as
    those of `ce.GaussianHead`, would contradict each other: no object is at both places.) Each term prefers pictures with few other
    objects, by the factor $1 / K$. `~` means that none is at $c$, by the mode `contrast`.

    Args:
        head: Logits of the cells, `head(z, sigma)` with shape $(B, 256)$, in the order of `cell_of`.
        base: What all pictures look like; it is counted once in an expression.
        radius: $r$, in the units of positions.
        name: How it is written in an expression.

    Raises:
        OptionError: The radius is not positive.

    References:
        Compositional visual generation with energy based models (Du et al., 2020), section 4.2: conjunctions of positions.
    """

    middles: Tensor

    def __init__(self, head: nn.Module, base: ce.Energy, *, radius: float = 0.1, name: str = "presence") -> None:
        super().__init__()
        if not 0 < radius < float("inf"):
            raise OptionError(f"radius must be positive, in the units of positions, got {radius!r}.")
        self.head, self.base, self.radius, self.name = ce.shared(head), base, float(radius), name
        self.event_shape, self.recommended = base.event_shape, base.recommended
        across = (torch.arange(CELLS) + 0.5) * _WIDTH - 1
        self.register_buffer("middles", torch.cartesian_prod(across, across).flip(1), persistent=False)

    @property
    def bases(self) -> tuple[WeightedBase, ...]:
        return (WeightedBase(self.base),)

    def forward_evidence(self, x: Tensor, c: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Returns the evidence with shape $(B,)$ of codes with shape $(B, 4, 8, 8)$.

        Args:
            x: The codes.
            c: Places on the floor, with shape $(B, 2)$.
            sigma: Noise levels, with shape $(B,)$.

        Raises:
            ShapeError: The places are not pairs.
        """
        nearness = self._nearness(c.to(x))
        logits = self.head(x) if sigma is None else self.head(x, sigma=sigma)
        return -torch.logsumexp(logits.log_softmax(1) + nearness, 1)

    def near(self, c: Sequence[float] | Tensor) -> ce.Energy:
        """Returns the energy of pictures with an object at a place: `given(c=...)`, of two numbers also.

        Args:
            c: The place, with shape $(2,)$ for all chains or $(n, 2)$ for each.
        """
        place = torch.as_tensor(c, dtype=torch.float32)
        return self.given(c=place[None] if place.ndim == 1 else place)

    @torch.no_grad()
    def map(self, x: Tensor, places: Tensor) -> Tensor:
        """Returns the evidence of many places at once, with shape $(B, P)$.

        Args:
            x: Codes without noise, with shape $(B, 4, 8, 8)$.
            places: Places on the floor, with shape $(P, 2)$.

        Raises:
            ShapeError: The places are not pairs.
        """
        nearness = self._nearness(places.to(x))
        return torch.cat([-torch.logsumexp(row[:, None] + nearness, 2) for row in self.head(x).log_softmax(1).split(8)])

    def config(self) -> dict[str, Any]:
        return {"head": self.head, "base": self.base, "radius": self.radius, "name": self.name}

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"

    def _nearness(self, c: Tensor) -> Tensor:
        r"""Returns $\log \mathcal N(c; m_k, r^2) - \log p(c)$, with shape $(N, 256)$."""
        if c.shape[1:] != (2,):
            raise ShapeError(f"A place is two numbers, so c has shape (n, 2), or (1, 2) for all points; got {tuple(c.shape)}.")
        squares = (c[:, None] - self.middles.to(c)).square().sum(2) / (-2 * self.radius**2)
        return squares.log_softmax(1) + math.log(CELLS**2)
