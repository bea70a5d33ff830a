"""Small random rotations, zooms, shifts and bends of pictures, with which a small set of pictures goes further."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.noise import Noise

__all__ = ["Distortion"]

_ANGLE, _ZOOM, _STRETCH, _ACROSS, _DOWN, _BEND = range(6)
_GRID = 4  # points on a side of the grid whose displacements bend a picture


@dataclass(frozen=True)
class Distortion:
    r"""Moves the pixels of each picture by a random affine map and a smooth displacement; each change is off by default.

    Values between pixels are interpolated, and pixels from outside have the value of the nearest pixel of the border. The changes of a row
    depend on the key of its chain and step only.

    Args:
        rotation: Largest angle in degrees, in either direction.
        zoom: Largest relative change of the size, and of the ratio of width and height.
        shift: Largest shift in each direction, as a share of the side.
        bend: Standard deviation of the displacements of a grid of 4 x 4 points, as a share of the side (Simard et al., 2003).

    Raises:
        OptionError: An option is out of range.

    References:
        Best practices for convolutional neural networks applied to visual document analysis (Simard, Steinkraus & Platt, 2003).
    """

    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    bend: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("rotation", 180), ("zoom", 0.9), ("shift", 1), ("bend", 1)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise OptionError(f"{name} must be from 0 to {most}, got {value!r}.")

    def __bool__(self) -> bool:
        return any((self.rotation, self.zoom, self.shift, self.bend))

    def __call__(self, images: Tensor, noise: Noise) -> Tensor:
        """Returns the distorted pictures.

        Args:
            images: Floating pictures with shape $(B, C, H, W)$.
            noise: Noise with one chain per row.
        """
        if not self:
            return images
        noise = noise.child("distortion")

        def between(largest: float, stream: int) -> Tensor:
            return largest * (2 * noise.uniform(images, stream) - 1).to(images.dtype)

        angle = between(math.radians(self.rotation), _ANGLE)
        size, ratio = 1 + between(self.zoom, _ZOOM), 1 + between(self.zoom, _STRETCH)
        across, down = between(2 * self.shift, _ACROSS), between(2 * self.shift, _DOWN)  # coordinates span 2
        rows = [size * ratio * angle.cos(), -size * angle.sin(), across, size * ratio * angle.sin(), size * angle.cos(), down]
        places = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
        if self.bend:
            coarse = noise.normal(images.new_empty(len(images), 2, _GRID, _GRID), _BEND) * 2 * self.bend
            places = places + F.interpolate(coarse, size=images.shape[2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        return F.grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)
