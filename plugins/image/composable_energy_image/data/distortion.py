"""Small random rotations, zooms, shifts and bends of pictures, with which a small set of pictures goes further."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.sampling import Noise

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

    NUMBERS: ClassVar[int] = 5 + 2 * _GRID**2
    """Numbers that describe a change."""

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

    def draw(self, images: Tensor, noise: Noise) -> Tensor:
        """Draws the changes of pictures, with shape $(B, 37)$: angle, size, ratio, two shifts, and the displacements of the grid.

        Numbers are in units of the largest change, or of the standard deviation; those of a change that is off are 0.
        """
        noise = noise.child("distortion")
        sizes = (self.rotation, self.zoom, self.zoom, self.shift, self.shift)
        affine = [bool(size) * (2 * noise.uniform(images, stream) - 1) for stream, size in enumerate(sizes)]
        bend = noise.normal(images.new_empty(len(images), 2, _GRID, _GRID), len(sizes)).flatten(1)
        return torch.cat([torch.stack(affine, 1).to(images.dtype), bool(self.bend) * bend], 1)

    def apply(self, images: Tensor, changes: Tensor) -> Tensor:
        """Returns the distorted pictures, with shape $(B, C, H, W)$, for changes as `draw` returns them."""
        affine, bend = changes.split([5, 2 * _GRID**2], 1)
        largest = changes.new_tensor(
            [math.radians(self.rotation), self.zoom, self.zoom, 2 * self.shift, 2 * self.shift]
        )  # sides are 2 long
        angle, size, ratio, across, down = (affine * largest).unbind(1)
        size, ratio = 1 + size, 1 + ratio
        rows = [size * ratio * angle.cos(), -size * angle.sin(), across, size * ratio * angle.sin(), size * angle.cos(), down]
        places = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
        if self.bend:
            coarse = bend.reshape(-1, 2, _GRID, _GRID) * 2 * self.bend
            places = places + F.interpolate(coarse, size=images.shape[2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        return F.grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)

    def __call__(self, images: Tensor, noise: Noise) -> Tensor:
        """Returns pictures with random changes; the noise has one chain per row."""
        return self.apply(images, self.draw(images, noise)) if self else images
