"""An encoder: a small network from points to logits."""

from __future__ import annotations

from torch import Tensor, nn

from composable_energy.errors import OptionError

__all__ = ["MyPlugin"]


class MyPlugin(nn.Module):
    """Logits of a point, from two hidden layers.

    Args:
        inputs: Numbers in a point.
        outputs: Logits.
        width: Hidden units.

    Raises:
        OptionError: A size is not positive.
    """

    def __init__(self, inputs: int = 2, outputs: int = 3, width: int = 16) -> None:
        super().__init__()
        if min(inputs, outputs, width) < 1:
            raise OptionError(f"inputs, outputs and width must be positive, got {inputs}, {outputs} and {width}.")
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, with shape $(B, outputs)$, of points with shape $(B, *)$."""
        return self.layers(x.flatten(1))
