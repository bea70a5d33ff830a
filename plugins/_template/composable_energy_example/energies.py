r"""An energy in closed form: a ring, $E(x) = (\lVert x \rVert - r)^2 / 2 w^2$."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import composable_energy as ce

__all__ = ["Ring"]


class Ring(ce.Energy):
    r"""Points at a distance $r$ from the origin, more or less.

    Args:
        radius: $r$.
        width: $w > 0$.

    Raises:
        OptionError: The width is not positive.

    Example:
        >>> Ring(radius=5.0)(torch.tensor([[3.0, 4.0]]))
        tensor([0.])
    """

    radius: Tensor

    def __init__(self, radius: float = 1.0, width: float = 0.2) -> None:
        super().__init__()
        if not width > 0:
            raise ce.errors.OptionError(f"width must be positive, got {width}.")
        self.register_buffer("radius", torch.tensor(float(radius)))
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).norm(dim=1) - self.radius).square() / (2 * self.width**2)

    def config(self) -> dict[str, Any]:
        return {"radius": self.radius.item(), "width": self.width}
