r"""Quadratic energies: each component has a target color and a weight at each pixel, and any sum of them has its minimum in closed form."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.options import check_choice, check_integer
from composable_energy_comet.component import TargetEnergy
from composable_energy_comet.coordinates import POSE, coordinate_grid, relative_coordinates

_CELLS = 8  # height and width of the decoder's first grid


class QuadraticEnergy(TargetEnergy):
    r"""A quadratic energy of one component of a picture, $E(x, z) = \tfrac12 \sum_p w_p(z)\, |x_p - r_p(z)|^2$.

    Weights $w > 0$ and pictures $r$ are decoded from the latent. Decoders with masks (MONet, IODINE, slot attention) are energies of this
    kind.
    The price: compositions are mask-like, and a component that changes the whole picture, such as light, needs weight everywhere.

    Args:
        coordinates: `"relative"` or `"absolute"`. Without coordinates the decoder would paint all pixels alike.
        start: `"image"` or `"uniform"`: the start of joint descents with other energies.

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
        check_choice("coordinates", coordinates, ("relative", "absolute"))
        super().__init__("comet-quadratic", size=size, channels=channels, latent=latent, coordinates=coordinates, start=start)
        self.recommended = ce.Recommendation("descent", {"step_size": 0.1}, threads=1)
        self.filters = check_integer("filters", filters)
        self.register_buffer("cells", coordinate_grid(_CELLS), persistent=False)
        self.spread = nn.Linear(latent, filters)
        self.place = nn.Conv2d(POSE if coordinates == "relative" else 2, filters, 1)
        self.mix = nn.Conv2d(filters, filters, 3, 1, 1)
        doublings = (size // _CELLS).bit_length() - 1  # 1 or more
        widths = [filters] * doublings + [32]
        growing = [nn.ConvTranspose2d(*pair, 4, 2, 1) for pair in pairwise(widths)]
        self.grow = nn.Sequential(*(layer for one in growing for layer in (one, nn.ReLU())))
        self.paint = nn.Conv2d(32, channels + 1, 3, 1, 1)

    def decode_targets(self, z: Tensor) -> tuple[Tensor, Tensor]:
        latent, pose = self.split(z)
        places = self.cells.expand(len(latent), -1, -1, -1) if pose is None else relative_coordinates(pose, self.cells)
        h = self.spread(latent)[:, :, None, None] + self.place(places)
        decoded = self.paint(self.grow(F.relu(self.mix(F.relu(h))))).unflatten(0, z.shape[:2])
        return decoded[:, :, :-1] + self.image, decoded[:, :, -1:]
