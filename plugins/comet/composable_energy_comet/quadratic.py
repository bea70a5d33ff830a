r"""Quadratic energies: each component says what it wants at each pixel and how much, and the lowest sum of any of them is known."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
from composable_energy_comet.component import ComponentEnergy
from composable_energy_comet.options import one_of, whole
from composable_energy_comet.places import POSE, seen_from
from composable_energy_comet.places import coordinates as grid

__all__ = ["QuadraticEnergy", "lowest"]

_CELLS = 8  # height and width of what the latent is spread over


def lowest(pictures: Tensor, weights: Tensor) -> Tensor:
    """Returns where the sum of quadratic energies is lowest, with shape $(B, C, S, S)$.

    Args:
        pictures: What components want, with shape $(B, K, C, S, S)$; of one model or of several.
        weights: The logarithms of how much, with shape $(B, K, 1, S, S)$.
    """
    return (weights.softmax(1) * pictures).sum(1)


class QuadraticEnergy(ComponentEnergy):
    r"""$E(x, z) = \tfrac12 \sum_p w_p(z)\, |x_p - r_p(z)|^2$, with weights $w > 0$ and pictures $r$ that are decoded from the latent.

    The sum over components has its minimum at $x_p = \sum_k w_{kp} r_{kp} / \sum_k w_{kp}$: no loop, no second derivatives, and masks for
    nothing, $w_{kp} / \sum_j w_{jp}$. So decoders with masks (MONet, IODINE, slot attention) are energies that `&` joins. The price is that
    compositions are mask-like; a component that changes all of a picture, such as light, has to weigh all of it.

    Args:
        size: Height and width of pictures.
        channels: Of pictures.
        latent: Numbers of a component, without its pose.
        filters: Of the decoder.
        coordinates: `"relative"` or `"absolute"`; a decoder without would paint all pixels alike.
        start: `"image"` or `"uniform"`: where descents begin that others join.

    Raises:
        OptionError: An option is out of range.

    References:
        The decoder: Spatial broadcast decoder (Watters et al., 2019), https://arxiv.org/abs/1901.07017.
    """

    cells: Tensor

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        latent: int = 16,
        *,
        filters: int = 48,
        coordinates: Literal["relative", "absolute"] = "relative",
        start: Literal["image", "uniform"] = "image",
    ) -> None:
        one_of("coordinates", coordinates, ("relative", "absolute"))
        told = {"size": size, "channels": channels, "latent": latent, "coordinates": coordinates}
        super().__init__("comet-quadratic", **told, start=start)
        self.recommended = ce.Recommendation("descent", {"step_size": 0.1}, threads=1)
        self.filters = whole("filters", filters)
        self.register_buffer("cells", grid(_CELLS), persistent=False)
        self.spread = nn.Linear(latent, filters)
        self.place = nn.Conv2d(POSE if coordinates == "relative" else 2, filters, 1)
        self.mix = nn.Conv2d(filters, filters, 3, 1, 1)
        doublings = (size // _CELLS).bit_length() - 1  # 1 or more
        widths = [filters] * doublings + [32]
        growing = [nn.ConvTranspose2d(*pair, 4, 2, 1) for pair in pairwise(widths)]
        self.grow = nn.Sequential(*(layer for one in growing for layer in (one, nn.ReLU())))
        self.paint = nn.Conv2d(32, channels + 1, 3, 1, 1)

    def wanted(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the pictures that components want, with shape $(B, K, C, S, S)$, and log weights with shape $(B, K, 1, S, S)$.

        Args:
            z: Latents, with shape $(B, K, D)$.
        """
        told, pose = self.split(z)
        h = self.spread(told)[:, :, None, None] + self.place(self._cells(pose, len(told)))
        painted = self.paint(self.grow(F.relu(self.mix(F.relu(h))))).unflatten(0, z.shape[:2])
        return painted[:, :, :-1] + self.image, painted[:, :, -1:]

    def energies(self, x: Tensor, z: Tensor) -> Tensor:
        pictures, weights = self.wanted(z)
        return (weights.exp() * (x[:, None] - pictures).square()).flatten(2).sum(2) / 2

    def minimum(self, z: Tensor) -> Tensor:
        """Returns the pictures of lowest energy, with shape $(B, C, S, S)$.

        Args:
            z: Latents, with shape $(B, K, D)$.
        """
        return lowest(*self.wanted(z))

    def config(self) -> dict[str, Any]:
        return {**self.shared_config(), "filters": self.filters}

    def _cells(self, pose: Tensor | None, rows: int) -> Tensor:
        if pose is not None:
            return seen_from(pose, self.cells)
        return self.cells.expand(rows, -1, -1, -1)
