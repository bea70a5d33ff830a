"""Random preparation of training pictures: flips, distortions, shifts and dequantization."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.sampling import Noise

_GRID = 4  # points on a side of the grid whose displacements bend a picture


@dataclass(frozen=True)
class Distortion:
    r"""Moves the pixels of each picture by a random affine map and a smooth displacement; each change is off by default.

    Values between pixels are interpolated, and pixels from outside have the value of the nearest pixel of the border. The changes of a row
    depend on the key of its chain and step only.

    References:
        Best practices for convolutional neural networks applied to visual document analysis (Simard, Steinkraus & Platt, 2003).
    """

    NUMBERS: ClassVar[int] = 5 + 2 * _GRID**2
    """Numbers that describe a change."""

    rotation: float = 0.0  # largest angle in degrees, in either direction
    zoom: float = 0.0  # largest relative change of the size, and of the ratio of width and height
    shift: float = 0.0  # largest shift in each direction, as a share of the side
    bend: float = 0.0  # standard deviation of the displacements of a grid of 4 x 4 points, as a share of the side

    def __post_init__(self) -> None:
        for name, most in (("rotation", 180), ("zoom", 0.9), ("shift", 1), ("bend", 1)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise OptionError(f"{name} must be from 0 to {most}, got {value!r}.")

    def __bool__(self) -> bool:
        return any((self.rotation, self.zoom, self.shift, self.bend))

    def draw(self, images: Tensor, noise: Noise) -> Tensor:
        """Draws the changes of pictures, with shape $(B, 37)$: angle, size, ratio, two shifts, and the displacements of the grid. Numbers
        are in units of the largest change, or of the standard deviation; those of a change that is off are 0."""
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


_FLIP, _DOWN, _ACROSS, _DEQUANTIZE = range(4)


@dataclass(frozen=True)
class Preparation:
    r"""Random changes of a batch of pictures; each is off by default.

    The changes of a row depend on the key of its chain and step only, so they do not depend on how rows are divided over calls or
    processes. They use the noise's child "preparation", which is independent of other uses of the noise.

    Args:
        flip: Whether to mirror a picture, left to right, with probability 1/2.
        dequantize: Noise that fills the gaps between byte values, where a density could have spikes. `"uniform"`: a pixel $x = k / 255$
            becomes $(k + u) / 256$ with $u$ uniform in $[0, 1]$ (Du & Mordatch, 2019). A number: Gaussian noise of this standard deviation,
            which may leave $[0, 1]$ (0.03 in JEM, Grathwohl et al., 2020). `"none"` adds nothing.
        padding: Largest shift in pixels, in each direction; the border is filled by reflection.
        rotation: See `Distortion`, as for `zoom`, `shift` and `bend`.
        zoom: Largest relative change of the size.
        shift: Largest shift as a share of the side; the border is filled by its nearest pixel.
        bend: Displacements of a grid of points, as a share of the side.

    Raises:
        OptionError: An option is out of range.

    References:
        Implicit generation and modeling with energy-based models (Du & Mordatch, 2019), https://arxiv.org/abs/1903.08689
        Your classifier is secretly an energy based model (Grathwohl et al., 2020), https://arxiv.org/abs/1912.03263

    Example:
        >>> import torch
        >>> from composable_energy.sampling import Noise
        >>> prepare = Preparation(flip=True, dequantize="uniform")
        >>> images, noise = torch.rand(6, 3, 8, 8), Noise(seed=0, chains=range(6), step=1)
        >>> torch.equal(prepare(images, noise)[4:], prepare(images[4:], noise.for_chains(range(4, 6))))
        True
    """

    flip: bool = False
    dequantize: Literal["none", "uniform"] | float = "none"
    padding: int = 0
    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    bend: float = 0.0

    def __post_init__(self) -> None:
        number = isinstance(self.dequantize, (int, float)) and not isinstance(self.dequantize, bool)
        if self.dequantize not in ("none", "uniform") and not (number and 0 < self.dequantize < math.inf):
            raise OptionError(f"dequantize must be 'none', 'uniform' or a positive standard deviation, got {self.dequantize!r}.")
        if not isinstance(self.padding, int) or self.padding < 0:
            raise OptionError(f"padding must be a number of pixels, 0 or more, got {self.padding!r}.")
        _ = self.distortion  # checks its options

    @property
    def distortion(self) -> Distortion:
        """The rotation, zoom, shift and bend; false if there is none."""
        return Distortion(self.rotation, self.zoom, self.shift, self.bend)

    def __call__(self, images: Tensor, noise: Noise) -> Tensor:
        """Returns the changed pictures, and leaves the given ones unchanged; the noise has one chain per row.

        Raises:
            ShapeError: The pictures have another shape, another number than the chains, or are no larger than the padding.
            DtypeError: The pictures are not floating.
        """
        if images.ndim != 4 or min(images.shape[2:]) <= self.padding:
            larger = f" larger than the padding of {self.padding}" if self.padding else ""
            raise ShapeError(f"Preparation takes pictures of shape (B, C, H, W){larger}, got {tuple(images.shape)}.")
        if not images.is_floating_point():
            raise DtypeError(f"Preparation takes floating pictures in [0, 1], got {images.dtype}; write `images.float() / 255`.")
        noise = noise.child("preparation")
        if self.flip:
            images = torch.where((noise.uniform(images, _FLIP) < 0.5)[:, None, None, None], images.flip(-1), images)
        images = self.distortion(images, noise)
        if self.padding:
            images = self._shift(images, noise)
        if self.dequantize == "uniform":
            return torch.special.ndtr(noise.normal(images, _DEQUANTIZE)).add_(images, alpha=255).div_(256)
        if self.dequantize == "none":
            return images
        return noise.add_normal_(images.clone(), float(self.dequantize), _DEQUANTIZE)

    def _shift(self, images: Tensor, noise: Noise) -> Tensor:
        size, device = self.padding, images.device
        wide = torch.nn.functional.pad(images, (size,) * 4, mode="reflect")
        down, across = (noise.uniform(images, stream).mul(2 * size + 1).long().clamp_(max=2 * size) for stream in (_DOWN, _ACROSS))
        rows = down[:, None] + torch.arange(images.shape[2], device=device)
        columns = across[:, None] + torch.arange(images.shape[3], device=device)
        row, channel = torch.arange(len(images), device=device), torch.arange(images.shape[1], device=device)
        return wide[row[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
