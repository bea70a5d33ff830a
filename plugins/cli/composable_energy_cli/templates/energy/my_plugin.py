r"""An energy in closed form: a ring, $E(x) = (\lVert x \rVert - r)^2 / 2 w^2$."""

from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError

__all__ = ["MyPlugin"]


class MyPlugin(ce.Energy):
    r"""Points of the plane at a distance of about $r$ from the origin.

    Args:
        radius: $r$.
        width: $w > 0$.

    Raises:
        OptionError: The width is not positive.
    """

    radius: Tensor

    def __init__(self, radius: float = 2.0, width: float = 0.2) -> None:
        super().__init__()
        if not width > 0:
            raise OptionError(f"width must be positive, got {width}.")
        self.register_buffer("radius", torch.tensor(float(radius)))  # follows `.to(device)`, and is saved
        self.width = width
        self.event_shape = torch.Size([2])
        self.name = "my-plugin"

    def forward(self, x: Tensor) -> Tensor:
        """Returns the energies, with shape $(B,)$, of points with shape $(B, 2)$."""
        return (x.norm(dim=1) - self.radius).square() / (2 * self.width**2)

    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, for comparison and saving."""
        return {"radius": self.radius.item(), "width": self.width}
