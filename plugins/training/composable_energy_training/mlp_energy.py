r"""The energy of a small multilayer perceptron, for points of a few coordinates."""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from composable_energy import Energy
from composable_energy.options import check_integer, check_number


class MLPEnergy(Energy):
    r"""A small multilayer perceptron, for points of a few coordinates.

    $E(x) = f(x) + \lVert x \rVert^2 / (2 s^2)$, where $f$ has SiLU activations.
    Far away $f$ is linear, so the square makes $e^{-E}$ a density with any weights: it can be sampled before, during and after training.

    Args:
        dim: The number of coordinates of a point.
        width: The units of each hidden layer.
        layers: The number of hidden layers.
        scale: $s$, in units of the points; several times their distance from the origin.

    Example:
        >>> from composable_energy_training import MLPEnergy
        >>> MLPEnergy(2)(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    comes_trained = False

    def __init__(self, dim: int, *, width: int = 64, layers: int = 3, scale: float = 4.0) -> None:
        super().__init__()
        sizes = [check_integer("dim", dim), *[check_integer("width", width)] * check_integer("layers", layers)]
        hidden = [part for before, after in pairwise(sizes) for part in (nn.Linear(before, after), nn.SiLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(width, 1))
        self.width, self.layers, self.scale = width, layers, check_number("scale", scale, above=0)
        self.event_shape = (dim,)

    def config(self) -> dict[str, Any]:
        return {"dim": self.net[0].in_features, "width": self.width, "layers": self.layers, "scale": self.scale}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0] + x.square().sum(1) / (2 * self.scale**2)
