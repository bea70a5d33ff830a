r"""The presence of an object at a position, learnt from pictures of several objects with one labelled position each."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.energies.bases import RelativeEnergy, WeightedBase
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_number
from composable_energy_image.noise_conditioning import UNet, level_column
from composable_energy_scenes.patches import CHANNELS, PATCHES

CELLS = 16
"""Cells of the floor on each side, each of 1/8 in the units of positions."""

_READ = 12  # channels from which the logits of cells are read
_WIDTH = 2 / CELLS


class PlaceHead(nn.Module):
    """Logits of the cell of the labelled object, given codes with noise; cells are in row-major order."""

    def __init__(self, sigma_min: float = 0.05) -> None:
        super().__init__()
        self.sigma_min = sigma_min
        self.net = UNet(_READ, None, width=32, levels=2, blocks=1, activation="swish", dropout=0.0)
        self.read = nn.Linear(_READ * PATCHES**2, CELLS**2)

    def forward(self, z: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns logits with shape $(B, 256)$ of codes with shape $(B, 4, 8, 8)$ at levels with shape $()$ or $(B,)$."""
        level = level_column(self.sigma_min if sigma is None else sigma, z)
        u = z * (1 + level * level).rsqrt()[:, :, None, None]
        return self.read(F.silu(self.net(F.pad(u, (0, 0, 0, 0, 0, _READ - CHANNELS)), level)).flatten(1))  # it has as many outputs


def cell_of(position: Tensor) -> Tensor:
    """Returns the cells, with shape $(N,)$, of positions with shape $(N, 2)$."""
    column, row = ((position + 1) / _WIDTH).long().clamp(0, CELLS - 1).unbind(1)
    return row * CELLS + column


class Presence(RelativeEnergy):
    r"""The energy of pictures with an object at $c$, up to a Gaussian error $r$: $\text{base}(z) - \log \frac{p(c \mid z)}{p(c)}$.

    Here $p(c \mid z) = \sum_k P(k \mid z)\, \mathcal N(c; m_k, r^2)$ is the density of the labelled position: in training, the label of a
    picture is the position of one random object. $k$ are the cells of the floor and $m_k$ their centres. $p(c)$ is the density for
    uniform positions, so evidence is 0 if the picture carries no information.

    A picture with $m$ of its $K$ objects at $c$ has $p(c \mid z) \propto m / K$. Repeated labels are independent given the picture, so
    `presence.near(a) & presence.near(b)` adds evidences and means an object at $a$ and one at $b$. (Events of one variable, such as those
    of `ce.GaussianHead`, would contradict each other, because no object is at both positions.) Each term prefers pictures with few other
    objects, by the factor $1 / K$. `~` means that no object is at $c$, by the mode `contrast`.

    Args:
        head: Logits of the cells, `head(z, sigma)` with shape $(B, 256)$, in the order of `cell_of`.
        base: The energy of any picture; an expression counts it once.
        radius: The error $r$, in the units of positions.
        name: The name in expressions.

    References:
        Compositional visual generation with energy based models (Du et al., 2020), section 4.2: conjunctions of positions.
    """

    middles: Tensor

    def __init__(self, head: nn.Module, base: ce.Energy, *, radius: float = 0.1, name: str = "presence") -> None:
        super().__init__()
        self.head, self.base, self.radius, self.name = ce.shared(head), base, check_number("radius", radius, above=0), name
        self.bases, self.event_shape, self.recommended = (WeightedBase(base),), base.event_shape, base.recommended
        across = (torch.arange(CELLS) + 0.5) * _WIDTH - 1
        self.register_buffer("middles", torch.cartesian_prod(across, across).flip(1), persistent=False)

    def forward_evidence(self, x: Tensor, c: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Returns the evidence with shape $(B,)$ of codes with shape $(B, 4, 8, 8)$ at positions and noise levels."""
        likelihoods = self._log_likelihoods(c.to(x))
        return -torch.logsumexp((self.head(x) if sigma is None else self.head(x, sigma=sigma)).log_softmax(1) + likelihoods, 1)

    def near(self, c: Sequence[float] | Tensor) -> ce.Energy:
        """Returns the energy of pictures with an object at a position, $(2,)$ for all chains or $(n, 2)$ for each: `given(c=...)`."""
        if not (place := torch.as_tensor(c, dtype=torch.float32)).isfinite().all():
            raise OptionError(f"A position is two finite numbers, got {c}.")
        return self.given(c=place[None] if place.ndim == 1 else place)

    @torch.no_grad()
    def map(self, x: Tensor, places: Tensor) -> Tensor:
        """Returns the evidence of $P$ positions on the floor, with shape $(B, P)$, in codes without noise."""
        likelihoods = self._log_likelihoods(places.to(x))
        return torch.cat([-torch.logsumexp(row[:, None] + likelihoods, 2) for row in self.head(x).log_softmax(1).split(8)])

    def config(self) -> dict[str, Any]:
        return {"head": self.head, "base": self.base, "radius": self.radius, "name": self.name}

    def extra_repr(self) -> str:
        return f"radius={self.radius:g}"

    def _log_likelihoods(self, c: Tensor) -> Tensor:
        r"""Returns $\log \mathcal N(c; m_k, r^2) - \log p(c)$, with shape $(N, 256)$."""
        if c.shape[1:] != (2,):
            raise ShapeError(f"A position is two numbers, so c must have shape (n, 2), or (1, 2) for all points; got {tuple(c.shape)}.")
        return ((c[:, None] - self.middles.to(c)).square().sum(2) / (-2 * self.radius**2)).log_softmax(1) + math.log(CELLS**2)
