"""Attribute heads: a network that classifies the attributes of a code, at all noise levels."""

from __future__ import annotations

from torch import Tensor, nn

from composable_energy.options import check_integer
from composable_energy_image.noise_conditioning import NoiseConditionedMLP, level_column


class CodeHeads(nn.Module):
    r"""Logits of attributes given a code at a noise level $\sigma$.

    An attribute of two values has one column, its log odds; an attribute of $K > 2$ values has $K$ columns.

    Args:
        outputs: Number of columns.
        code: Numbers $D$ in a code.
        width: Hidden units.
        blocks: Residual blocks.
        sigma_min: The default noise level.

    Raises:
        OptionError: An option is out of range.
    """

    def __init__(self, outputs: int, *, code: int = 64, width: int = 256, blocks: int = 2, sigma_min: float = 0.05) -> None:
        super().__init__()
        self.sigma_min = sigma_min
        self.net = NoiseConditionedMLP(
            check_integer("code", code),
            check_integer("outputs", outputs),
            width=check_integer("width", width),
            blocks=check_integer("blocks", blocks, 0),
        )

    def forward(self, z: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Returns logits with shape $(B, outputs)$ of codes with shape $(B, D)$ at levels with shape $()$ or $(B,)$."""
        sigma = level_column(self.sigma_min if sigma is None else sigma, z)
        return self.net(z * (1 + sigma * sigma).rsqrt(), sigma)
