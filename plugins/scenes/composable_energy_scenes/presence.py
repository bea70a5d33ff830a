r"""That an object stands somewhere, learnt from pictures of several objects of which only one is told."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from composable_energy_image.unet import UNet
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.energy import WeightedBase
from composable_energy.errors import OptionError, ShapeError

from .patches import CHANNELS, PATCHES, PatchEnergy, levels

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
    r"""That an object stands near $c$: $E(z \mid c) = \text{base}(z) - \log \frac{P(\lVert t - c \rVert_\infty < r \mid z)}{P(\lVert t - c
    \rVert_\infty < r)}$.

    Here $t$ is where the told object is. In training each picture has several objects and one of them, drawn by chance, is told; so of a
    picture with $m$ of its $K$ objects near $c$ the probability is $m / K$. The places of objects told in turn are independent given the
    picture, so `presence.given(c=a) & presence.given(c=b)` adds evidences: an object near $a$ and one near $b$. (Events of one variable
    would contradict each other: no object is at both places.) It prefers pictures with few other objects, by the factor $1 / K$ of each
    term. The probability that divides is that of a place drawn uniformly from the floor; so evidence is 0 where a picture says nothing,
    and `~` means none near $c$, by the mode `contrast`.

    Args:
        head: Logits of the cells, `head(z, sigma)` with shape $(B, 256)$, in the order of `cell_of`.
        base: What all pictures look like; it is counted once in an expression.
        radius: $r$, on each axis.
        name: How it is written in an expression.

    Raises:
        OptionError: The radius is not positive.

    References:
        Compositional visual generation with energy based models (Du et al., 2020), section 4.2: conjunctions of positions.
    """

    def __init__(self, head: nn.Module, base: PatchEnergy | ce.Energy, *, radius: float = 0.2, name: str = "presence") -> None:
        super().__init__()
        if not 0 < radius < float("inf"):
            raise OptionError(f"radius must be positive, in the units of positions, got {radius!r}.")
        self.head, self.base, self.radius, self.name = ce.shared(head), base, float(radius), name
        self.event_shape, self.recommended = base.event_shape, base.recommended

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
        if c.shape[1:] != (2,):
            raise ShapeError(f"c has two numbers for each point, shape (n, 2) or (1, 2) for all; got {tuple(c.shape)}.")
        column, row = (_covered(values, self.radius) for values in c.to(x).unbind(1))
        share = (row[:, :, None] * column[:, None, :]).flatten(1)
        logits = self.head(x) if sigma is None else self.head(x, sigma=sigma)
        inside = torch.logsumexp(logits.masked_fill(share == 0, -torch.inf) + share.clamp_min(1e-12).log(), 1)
        return torch.logsumexp(logits, 1) - inside + (share.sum(1) / CELLS**2).log()

    def config(self) -> dict[str, Any]:
        return {"head": self.head, "base": self.base, "radius": self.radius, "name": self.name}

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"


def _covered(center: Tensor, radius: float) -> Tensor:
    """Returns how much of each cell, on one axis, is within a radius of centers with shape $(B,)$: shares with shape $(B, 16)$.

    A place beyond the border counts as one at the border.
    """
    left = torch.arange(CELLS, dtype=center.dtype, device=center.device) * _WIDTH - 1
    middle = center.clamp(-1, 1)[:, None]
    reach = torch.minimum(left + _WIDTH, middle + radius) - torch.maximum(left, middle - radius)
    return (reach / _WIDTH).clamp(0, 1)
