"""The autoencoder of `base-and-attributes`, whose codes are the points of its energies."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.options import check_integer
from composable_energy_viz.files import check_range

_WIDTHS = (16, 16, 32, 64, 96, 128)
"""Channels of the encoder's layers. Smaller pictures need fewer layers, and use the last of these."""


class Autoencoder(nn.Module):
    r"""An autoencoder between pictures and codes of unit variance. Calling it decodes, as the decoder of a latent energy must.

    The encoder halves pictures until they have 4 to 7 pixels on a side. The decoder works at 16 x 16 or below, and then writes
    blocks of pixels, which makes it cheap. Blocks are 4 x 4 for pictures of 64 pixels; larger blocks give coarser pictures. Pictures whose
    side is no multiple of 16 are padded by their outermost pixels inside of it, which keeps them sharper than resizing them.

    Args:
        size: Height and width $S$ of the pictures, from 16 to 256.
        channels: Channels $C$, 1 or 3.
        code: Numbers $D$ in a code.
        features: Channels of the decoder's maps of 16 x 16, an even number; the other layers follow. Most of the cost is theirs.
        details: Channels of a last layer of all pixels, without which the borders of blocks show in flat areas; 0 for none.

    Raises:
        OptionError: An option is out of range.
    """

    def __init__(self, size: int = 64, channels: int = 3, code: int = 64, features: int = 64, details: int = 0) -> None:
        super().__init__()
        check_picture_shape(size, channels)
        self.size, self.channels, self.code = size, channels, check_integer("code", code)
        if check_integer("features", features, least=2) % 2:
            raise OptionError(f"features must be even, got {features}.")
        at_4, at_8, at_16 = 2 * features, 3 * features // 2, features
        self.padding = -size % 16
        left, halvings = size + self.padding, 0
        while left >= 8:
            left, halvings = left // 2, halvings + 1
        layers, before = [], channels
        for width in (max(8, width * features // 64) for width in _WIDTHS[-halvings:]):
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.SiLU()]
            before = width
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * left * left, code))
        self.standardize = nn.BatchNorm1d(code, affine=False, momentum=0.02)
        self.unfold = nn.Sequential(nn.Linear(code, 3 * features), nn.SiLU(), nn.Linear(3 * features, at_4 * 4 * 4), nn.SiLU())
        self.at_4 = nn.Conv2d(at_4, at_4, 3, 1, 1)
        self.to_8 = nn.ConvTranspose2d(at_4, at_8, 4, 2, 1)
        self.at_8 = nn.Conv2d(at_8, at_8, 3, 1, 1)
        self.to_16 = nn.ConvTranspose2d(at_8, at_16, 4, 2, 1)
        self.at_16 = nn.Conv2d(at_16, at_16, 3, 1, 1)
        self.to_pixels = nn.Conv2d(at_16, (check_integer("details", details, 0) or channels) * ((size + self.padding) // 16) ** 2, 3, 1, 1)
        self.last = nn.Sequential(nn.SiLU(), nn.Conv2d(details, channels, 3, 1, 1)) if details else None

    def encode(self, images: Tensor) -> Tensor:
        """Returns the codes, with shape $(B, D)$, of pictures in [0, 1] with shape $(B, C, S, S)$.

        Raises:
            ShapeError: The pictures have another shape.
            DtypeError: They are bytes, an array of numpy, or have another dtype than the weights.
            OptionError: They lie far outside of [0, 1], and the autoencoder does not train.
        """
        codes = self.encode_raw(images)
        if not (self.training or images.requires_grad):  # points on their way may leave the range
            check_range(images, 0.5)
        return self.standardize(codes)

    def encode_raw(self, images: Tensor) -> Tensor:
        """Returns codes before standardization, with shape $(B, D)$; otherwise as `encode`."""
        expected, kind = (self.channels, self.size, self.size), next(self.parameters()).dtype
        if not isinstance(images, Tensor) or (images.dtype != kind and not torch.is_autocast_enabled(images.device.type)):
            ways = f"write `torch.as_tensor(images, dtype={kind})`, of bytes `torch.as_tensor(images) / 255`."
            raise DtypeError(f"The autoencoder takes a tensor of pictures in {kind}, got {getattr(images, 'dtype', type(images))}: {ways}")
        if images.shape[1:] != expected:
            raise ShapeError(f"The autoencoder takes pictures of shape (B, {', '.join(map(str, expected))}), got {tuple(images.shape)}.")
        before, after = self.padding // 2, self.padding - self.padding // 2
        return self.encoder(F.pad(images * 2 - 1, (before, after) * 2, "replicate") if self.padding else images * 2 - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Returns pictures without clamping to [0, 1], as training needs them."""
        if codes.shape[1:] != (self.code,):
            raise ShapeError(f"The autoencoder decodes codes of shape (B, {self.code}), got {tuple(codes.shape)}.")
        h = self.unfold(codes).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)  # a fifth faster on the CPU
        h = h + F.silu(self.at_4(h))
        h = F.silu(self.to_8(h))
        h = h + F.silu(self.at_8(h))
        h = F.silu(self.to_16(h))
        h = h + F.silu(self.at_16(h))
        images, first = F.pixel_shuffle(self.to_pixels(h), (self.size + self.padding) // 16), self.padding // 2
        images = images if self.last is None else self.last(images)
        return images[..., first : first + self.size, first : first + self.size] / 2 + 0.5

    def forward(self, codes: Tensor) -> Tensor:
        """Returns the pictures, in [0, 1] with shape $(B, C, S, S)$, of codes with shape $(B, D)$."""
        return self.decode(codes).clamp(0, 1)


def check_picture_shape(size: int, channels: int) -> None:
    """Raises `OptionError` if the autoencoder does not support this height, width and number of channels."""
    if size not in range(16, 257):
        raise OptionError(f"size must be a whole number from 16 to 256, got {size!r}.")
    if channels not in (1, 3):
        raise OptionError(f"channels must be 1 (grey) or 3 (color), got {channels!r}.")
