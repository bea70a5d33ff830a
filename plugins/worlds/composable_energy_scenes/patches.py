r"""Spatial codes: a few numbers for each patch of 8 x 8 pixels, and the energy of such codes.

A single code has to represent every combination of objects. Here each is encoded at its position, so four objects are as easy as one.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_image.metrics import check_pictures
from composable_energy_image.noise_conditioning import UNet, level_column

CHANNELS = 4
"""Numbers for each patch."""

PATCHES = 8
"""Patches on each side of a picture."""

_PIXELS = 8 * PATCHES


class PatchCoder(nn.Module):
    """An autoencoder between pictures of 64 x 64 and codes with shape (4, 8, 8) and unit variance per channel.

    Calling it decodes, as the decoder of a latent energy must.
    """

    def __init__(self) -> None:
        super().__init__()
        halve = [nn.Conv2d(3, 24, 4, 2, 1), nn.SiLU(), nn.Conv2d(24, 48, 4, 2, 1), nn.SiLU(), nn.Conv2d(48, 64, 4, 2, 1), nn.SiLU()]
        self.encoder = nn.Sequential(*halve, nn.Conv2d(64, CHANNELS, 3, 1, 1))
        self.standardize = nn.BatchNorm2d(CHANNELS, affine=False, momentum=0.02)
        self.read = nn.Conv2d(CHANNELS, 64, 3, 1, 1)
        self.at_8 = nn.Conv2d(64, 64, 3, 1, 1)
        self.to_16 = nn.ConvTranspose2d(64, 48, 4, 2, 1)
        self.at_16 = nn.Conv2d(48, 48, 3, 1, 1)
        self.to_pixels = nn.Conv2d(48, 3 * 16, 3, 1, 1)

    @property
    def numbers(self) -> int:
        return CHANNELS * PATCHES**2

    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes, with shape $(B, 4, 8, 8)$, of pictures in [0, 1] with shape $(B, 3, 64, 64)$."""
        check_pictures("The patch coder", self, images, (3, _PIXELS, _PIXELS))
        return self.standardize(self.encoder(images * 2 - 1).float())

    def decode(self, codes: Tensor) -> Tensor:
        """Returns pictures without clamping to [0, 1], as training needs them."""
        h = F.silu(self.read(codes))
        h = h + F.silu(self.at_8(h))
        h = F.silu(self.to_16(h))
        h = h + F.silu(self.at_16(h))
        return F.pixel_shuffle(self.to_pixels(h), 4) / 2 + 0.5

    def forward(self, codes: Tensor) -> Tensor:
        """Returns the pictures, in [0, 1] with shape $(B, 3, 64, 64)$, of codes with shape $(B, 4, 8, 8)$."""
        return self.decode(codes).clamp(0, 1)


class PatchNetwork(ce.Energy):
    r"""The energy of codes alone, $B(z, \sigma) = \tfrac12 |u|^2 + \langle u, f(u, \sigma) \rangle / (\sigma c)$.

    Here $u = c z$, $c = (1 + \sigma^2)^{-1/2}$, and $f$ is a U-Net on the grid of patches, 0 before training (standard normal codes).
    """

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = (CHANNELS, PATCHES, PATCHES)
        self.net = UNet(CHANNELS, None, width=48, levels=2, blocks=1, activation="swish", dropout=0.0)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        level = level_column(sigma, x)
        scale = (1 + level * level).rsqrt()
        u = x * scale[:, :, None, None]
        return (u.square() / 2).flatten(1).sum(1) + (u * self.net(u, level)).flatten(1).sum(1) / (level * scale).squeeze(1)


class PatchEnergy(ce.Energy):
    """The energy of any picture at a noise level, over codes of its patches; its decoder is a `PatchCoder`."""

    sigma_min, sigma_max = 0.05, 8.0

    def __init__(self) -> None:
        super().__init__()
        self.name = "several"
        self.net = PatchNetwork()
        self.decoder = PatchCoder()
        self.event_shape = self.net.event_shape
        options = {"levels": 40, "sigma_max": self.sigma_max, "sigma_min": self.sigma_min, "corrector_steps": 0}
        self.recommended = ce.Recommendation("annealed", options, threads=1)

    @property
    def coder(self) -> PatchCoder:
        return cast(PatchCoder, self.decoder)

    def forward(self, x: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns energies with shape $(B,)$ of codes with shape $(B, 4, 8, 8)$ at levels with shape $()$ or $(B,)$."""
        return self.net(x, sigma=self.sigma_min if sigma is None else sigma)
