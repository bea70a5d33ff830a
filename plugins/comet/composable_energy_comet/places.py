r"""Places in a picture: coordinates from -1 to 1, and where a component is.

A *pose* is three numbers: the middle $p$ of a component (down, right) and its spread $s > 0$.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["POSE", "coordinates", "pose_of", "seen_from"]

POSE = 3
"""How many numbers a pose has."""

_LEAST = 0.01  # of a variance, so that no spread is 0


def coordinates(size: int) -> Tensor:
    """Returns the coordinates of pixels, down and right, with shape $(2, S, S)$."""
    line = torch.linspace(-1, 1, size)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))


def pose_of(attention: Tensor, places: Tensor) -> Tensor:
    """Returns the middle and the spread of attention, with shape $(B, 3)$.

    Args:
        attention: Weights that sum to 1, with shape $(B, N)$.
        places: The coordinates of what they weigh, with shape $(N, 2)$.
    """
    middle = attention @ places
    variance = attention @ places.square() - middle.square()
    return torch.cat([middle, (variance.clamp(min=0).mean(1, keepdim=True) + _LEAST).sqrt()], 1)


def seen_from(pose: Tensor, places: Tensor) -> Tensor:
    r"""Returns coordinates as they are seen from a component: $(g - p) / 2 s$ and $e^{-|g - p|^2 / 2 s^2}$, with shape $(B, 3, S, S)$.

    Args:
        pose: With shape $(B, 3)$.
        places: The coordinates $g$, with shape $(2, S, S)$.
    """
    middle, spread = pose[:, :2, None, None], pose[:, 2:, None, None]
    away = (places - middle) / spread
    return torch.cat([away / 2, (-away.square().sum(1, keepdim=True) / 2).exp()], 1)
