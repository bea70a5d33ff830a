"""Linear operators of pictures: blur, down-sampling, the Radon transform."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_choice, check_integer, check_number
from composable_energy_observed.interface import Operator

_PADDINGS = {"reflect": "reflect", "circular": "circular", "zeros": "constant"}


class Blur(Operator):
    """A convolution of pictures of shape $(C, H, W)$ with one kernel for all channels.

    Args:
        kernel: The kernel, with shape $(h, w)$ of odd numbers; or the standard deviation of a Gaussian in pixels.
        padding: What lies beyond the border: `reflect`, `circular` or `zeros`.

    Raises:
        OptionError: The kernel has no centre, or is not finite.
    """

    name = "blur"
    kernel: Tensor

    def __init__(self, kernel: Tensor | float, padding: str = "reflect") -> None:
        super().__init__()
        if not isinstance(kernel, Tensor):
            kernel = _gaussian_kernel(check_number("kernel, a standard deviation in pixels,", kernel, above=0))
        if kernel.ndim != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0 or not bool(kernel.isfinite().all()):
            raise OptionError(f"The kernel of a blur has two axes of odd length and finite numbers, got shape {tuple(kernel.shape)}.")
        self.register_buffer("kernel", kernel.float() if not kernel.is_floating_point() else kernel)
        self.padding = check_choice("padding", padding, _PADDINGS)

    def forward(self, x: Tensor) -> Tensor:
        channels, kernel = _pictures(self, x), self.kernel.to(x)
        up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
        if self.padding != "zeros" and (up >= x.shape[2] or left >= x.shape[3]):
            raise ShapeError(f"A kernel of shape {tuple(kernel.shape)} is too large for pictures of shape {tuple(x.shape[1:])}.")
        padded = F.pad(x, (left, left, up, up), mode=_PADDINGS[self.padding])
        return F.conv2d(padded, kernel.expand(channels, 1, *kernel.shape), groups=channels)


class Downsample(Operator):
    """The means of squares of `factor` by `factor` pixels of pictures of shape $(C, H, W)$.

    Args:
        factor: The length of a square, at least 2.
    """

    name = "downsample"

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = check_integer("factor", factor, 2)

    def forward(self, x: Tensor) -> Tensor:
        _pictures(self, x)
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ShapeError(f"Pictures of shape {tuple(x.shape[1:])} have no whole squares of {self.factor} pixels.")
        return F.avg_pool2d(x, self.factor)

    def point_shape(self, measured: Size) -> Size:
        if len(measured) != 3:
            raise ShapeError(f"A down-sampled picture has shape (C, H, W), got {tuple(measured)}.")
        channels, height, width = measured
        return Size((channels, height * self.factor, width * self.factor))


class Radon(Operator):
    r"""The Radon transform: sums along parallel lines, $(C, W, W)$ to $(C, K, W)$ for $K$ angles; pictures are 0 outside.

    Args:
        angles: The angles in degrees, at least one.

    Raises:
        OptionError: There are no angles, or one is not finite.
    """

    name = "radon"
    angles: Tensor

    def __init__(self, angles: Sequence[float] | Tensor) -> None:
        super().__init__()
        angles = torch.as_tensor(angles, dtype=torch.float64) if not isinstance(angles, Tensor) else angles
        if angles.ndim != 1 or not len(angles) or not bool(angles.isfinite().all()):
            raise OptionError(f"The angles of a Radon transform are finite numbers in degrees, got {angles.tolist()}.")
        self.register_buffer("angles", angles)

    def forward(self, x: Tensor) -> Tensor:
        _pictures(self, x)
        if x.shape[2] != x.shape[3]:
            raise ShapeError(f"The Radon transform takes square pictures, got shape {tuple(x.shape[1:])}.")
        return torch.stack([self._turn(x, float(angle)).sum(2) for angle in self.angles.deg2rad()], 2)

    def _turn(self, x: Tensor, angle: float) -> Tensor:
        c, s = math.cos(angle), math.sin(angle)
        turn = x.new_tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(x), 2, 3)
        return F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False), align_corners=False)

    def point_shape(self, measured: Size) -> Size:
        if len(measured) != 3 or measured[1] != len(self.angles):
            raise ShapeError(f"The projections of {len(self.angles)} angles have shape (C, {len(self.angles)}, W), got {tuple(measured)}.")
        return Size((measured[0], measured[2], measured[2]))


def _pictures(operator: Operator, x: Tensor) -> int:
    """Returns the number of channels of pictures."""
    if x.ndim != 4:
        raise ShapeError(f"The operator {operator} takes pictures of shape (B, C, H, W), got {tuple(x.shape)}.")
    return x.shape[1]


def _gaussian_kernel(width: float) -> Tensor:
    reach = max(1, math.ceil(3 * width))
    line = torch.exp(-torch.arange(-reach, reach + 1, dtype=torch.float64).square() / (2 * width**2))
    line = line / line.sum()
    return torch.outer(line, line).float()
