r"""Signed distances in the plane: below 0 inside of a shape."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.options import check_number


class Disc(nn.Module):
    """The signed distance from a disc, or from a ball in more dimensions."""

    center: Tensor

    def __init__(self, center: Sequence[float] | Tensor, radius: float) -> None:
        super().__init__()
        self.register_buffer("center", torch.as_tensor(center, dtype=torch.get_default_dtype()).clone())
        self.radius = check_number("radius", radius, above=0)

    def forward(self, points: Tensor) -> Tensor:
        """Returns the distances, with shape $(*)$, of points with shape $(*, d)$."""
        return torch.linalg.vector_norm(points - self.center, dim=-1) - self.radius


class Box(nn.Module):
    """The signed distance from a box with a center and half of its size along each axis.

    Raises:
        OptionError: A size is not positive, or there is not one for each axis.
    """

    center: Tensor
    extent: Tensor

    def __init__(self, center: Sequence[float] | Tensor, half: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.register_buffer("center", torch.as_tensor(center, dtype=torch.get_default_dtype()).clone())
        self.register_buffer("extent", torch.as_tensor(half, dtype=torch.get_default_dtype()).clone())
        if self.extent.shape != self.center.shape or not bool((self.extent > 0).all()):
            raise OptionError(f"A box has a positive half size for each axis of its center, got {self.extent.tolist()}.")

    def forward(self, points: Tensor) -> Tensor:
        beyond = (points - self.center).abs() - self.extent
        outside = torch.linalg.vector_norm(beyond.clamp_min(0), dim=-1)
        return outside + beyond.amax(-1).clamp_max(0)
