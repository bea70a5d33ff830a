"""Attribute heads: a network that names what is true of a code, at every noise level."""

from __future__ import annotations

from torch import Tensor, nn

from composable_energy_image.leveled import LeveledMLP, column
from composable_energy_image.options import whole

__all__ = ["CodeHeads"]


class CodeHeads(nn.Module):
    r"""Logits of attributes given a code at a noise level $\sigma$.

    Each attribute of two values has one column, its log odds; one of $K > 2$ values has $K$.

    Args:
        outputs: Columns.
        code: $D$, numbers in a code.
        width: Hidden units.
        blocks: Residual blocks.
        sigma_min: The level where none is given.

    Raises:
        OptionError: An option is out of range.
    """

    def __init__(self, outputs: int, *, code: int = 64, width: int = 256, blocks: int = 2, sigma_min: float = 0.05) -> None:
        super().__init__()
        self.sigma_min = sigma_min
        self.net = LeveledMLP(
            whole("code", code), whole("outputs", outputs), width=whole("width", width), blocks=whole("blocks", blocks, 0)
        )

    def forward(self, z: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns logits with shape $(B, outputs)$ of codes with shape $(B, D)$ at levels with shape $()$ or $(B,)$."""
        sigma = column(self.sigma_min if sigma is None else sigma, z)
        return self.net(z * (1 + sigma * sigma).rsqrt(), sigma)
