"""An encoder: a small network from points to logits."""

from torch import Tensor, nn

__all__ = ["MyPlugin"]


class MyPlugin(nn.Module):
    """Logits of a point, from two hidden layers.

    Args:
        inputs: Numbers in a point.
        outputs: Logits.
        width: Hidden units.
    """

    def __init__(self, inputs: int = 2, outputs: int = 3, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, with shape $(B, outputs)$, of points with shape $(B, *)$."""
        return self.layers(x.flatten(1))
