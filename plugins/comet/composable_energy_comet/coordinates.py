r"""Coordinates of pixels, from -1 to 1, and poses of components.

A *pose* is three numbers: the centre $p$ of a component (down, right) and its spread $s > 0$.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError

POSE = 3
"""Numbers in a pose."""

_LEAST_VARIANCE = 0.01  # keeps the spread positive
_LEAST_LOG = -40.0  # below any rounding; smaller ones would become subnormal numbers, which slow convolutions down


def check_picture_size(value: Any) -> int:
    """Returns the height and width of pictures, a power of two of at least 16, or raises `OptionError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 16 or value & (value - 1):
        raise OptionError(f"size must be 16, 32, 64 or another power of two, as networks halve pictures; got {value!r}.")
    return value


def coordinate_grid(size: int) -> Tensor:
    """Returns the coordinates of pixels, down and right, with shape $(2, S, S)$."""
    line = torch.linspace(-1, 1, size)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))


def estimate_pose(attention: Tensor, places: Tensor) -> Tensor:
    """Returns the mean and the spread of attention with shape $(B, N)$ to places with shape $(N, 2)$; the pose has shape $(B, 3)$."""
    centre = attention @ places
    variance = attention @ places.square() - centre.square()
    return torch.cat([centre, (variance.clamp(min=0).mean(1, keepdim=True) + _LEAST_VARIANCE).sqrt()], 1)


def relative_coordinates(pose: Tensor, places: Tensor) -> Tensor:
    """Returns coordinates relative to poses, $(g - p) / 2 s$ and $e^{-|g - p|^2 / 2 s^2}$, with shape $(B, 3, S, S)$."""
    centre, spread = pose[:, :2, None, None], pose[:, 2:, None, None]
    offset = (places - centre) / spread
    near = (-offset.square().sum(1, keepdim=True) / 2).clamp(min=_LEAST_LOG).exp()
    return torch.cat([offset / 2, near], 1)


def options_of(module: nn.Module) -> dict[str, Any]:
    """Returns the arguments of a module's constructor, which it keeps as attributes of their names."""
    return {name: getattr(module, name) for name in inspect.signature(type(module)).parameters}
