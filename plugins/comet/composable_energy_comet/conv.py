r"""The energy of COMET: a small convolutional network that is conditioned on the latent of a component."""

from collections import deque
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.options import check_choice, check_integer, check_number
from composable_energy_comet.component import POSE, ComponentEnergy, relative_coordinates
from composable_energy_training.second_derivatives import differentiable_gradient

SPREAD = 0.1
"""Standard deviation of the noise that is added to the start image."""


class ConvEnergy(ComponentEnergy):
    r"""An energy of one component of a picture by convolutions, $E(x, z)$.

    Three residual blocks whose gains and offsets are linear in $z$, mean pooling, and a linear head. With relative coordinates, a second
    convolution reads $(g - p) / 2s$ and $e^{-|g - p|^2 / 2 s^2}$ for pixels $g$ and the pose $(p, s)$. With absolute coordinates, the first
    convolution reads $g$ beside the colors. Features that do not depend on $z$ are computed once for all components of a picture.

    The learnt step size is a scale of the energy. So the trained step size is 1, and energies that were trained apart descend together.

    The arguments that are not listed here are those of `ComponentEnergy`.

    Args:
        filters: Channels of the first two blocks; the third has twice as many.
        stem: How the first layer halves a picture: by `"pool"`, or by a `"stride"` of 2, which is cheaper.
        step: Step size of the descent before training.
        iterations: Number of steps of the descent.

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, appendix A: 64 filters,
        absolute coordinates, `start="uniform"`. The released code never calls its normalization layers, so this network has none.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        latent: int = 16,
        *,
        filters: int = 32,
        coordinates: Literal["relative", "absolute", "none"] = "relative",
        stem: Literal["pool", "stride"] = "pool",
        step: float = 100.0,
        iterations: int = 3,
        start: Literal["image", "uniform"] = "image",
    ) -> None:
        super().__init__("comet-conv", size=size, channels=channels, latent=latent, coordinates=coordinates, start=start)
        self.filters, self.iterations = check_integer("filters", filters), check_integer("iterations", iterations)
        self.step = check_number("step", step, above=0)
        self.recommended = ce.Recommendation("inner-descent", {"iterations": iterations}, threads=1)
        self.stem = check_choice("stem", stem, ("pool", "stride"))
        reads = channels + 2 * (coordinates == "absolute")
        self.read = nn.Conv2d(reads, filters, 3, 1, 1) if stem == "pool" else nn.Conv2d(reads, filters, 4, 2, 1)
        if coordinates == "relative":
            self.place = nn.Conv2d(POSE, filters, 3, 1, 1, bias=False) if stem == "pool" else nn.Conv2d(POSE, filters, 4, 2, 1, bias=False)
        else:
            self.place = None
        self.blocks = nn.ModuleList(_Block(filters, outputs, latent) for outputs in (filters, filters, 2 * filters))
        self.tell = nn.Linear(2 * filters, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def energies(self, x: Tensor, z: Tensor) -> Tensor:
        latent, pose = self.split(z)
        components = z.shape[1]
        h = self.read(torch.cat([x, self.places.expand(len(x), -1, -1, -1)], 1) if self.coordinates == "absolute" else x)
        if self.place is not None and pose is not None:
            places = self.place(relative_coordinates(pose, self.places))
            h = (h[:, None] + places.unflatten(0, (-1, components))).flatten(0, 1)
        h = F.silu(h)
        if self.stem == "pool":
            h = F.avg_pool2d(h, 2)
        for block in self.blocks:
            h = block(h, latent)
        return self.step * self.log_scale.exp() * self.tell(h.mean((2, 3))).view(len(x), components)


class _Block(nn.Module):
    """A residual block whose gains and offsets are linear in the latent, and which halves a picture."""

    def __init__(self, filters: int, outputs: int, latent: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(filters, filters, 3, 1, 1), nn.Conv2d(filters, filters, 3, 1, 1)
        self.last = nn.Conv2d(filters, outputs, 3, 1, 1)
        self.told = nn.Linear(latent, 4 * filters)  # saved weights use this name
        nn.init.normal_(self.second.weight, 0, 1e-5)
        nn.init.zeros_(self.second.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Returns features with shape $(B K, \\cdot, \\cdot, \\cdot)$; x has $B$ rows, or $B K$."""
        gain, offset, gain2, offset2 = self.told(z)[:, :, None, None].chunk(4, 1)
        shape = (len(x), len(z) // len(x))  # pictures, and the components that share their features
        h = self.first(x)[:, None] * (1 + gain).unflatten(0, shape) + offset.unflatten(0, shape)
        h = self.second(F.silu(h.flatten(0, 1)))
        h = (F.silu(h * (1 + gain2) + offset2).unflatten(0, shape) + x[:, None]).flatten(0, 1)
        return F.avg_pool2d(F.silu(self.last(h)), 2)


def descent_iterates(energy: ConvEnergy, z: Tensor, x: Tensor, iterations: int) -> Iterator[Tensor]:
    """Yields the pictures after 0, 1, ... steps from x with shape $(B, C, S, S)$, without graphs."""
    z, x = z.detach(), x.detach()
    yield x
    for _ in range(iterations):
        x = descent_step(energy, z, x).detach().clamp(0, 1)
        yield x


def descend(energy: ConvEnergy, z: Tensor, x: Tensor, iterations: int) -> Tensor:
    """Returns the pictures after the last step from x with shape $(B, C, S, S)$, without a graph."""
    return deque(descent_iterates(energy, z, x, iterations), maxlen=1).pop()


def descent_step(energy: ConvEnergy, z: Tensor, x: Tensor, *, graph: bool = False) -> Tensor:
    """Returns the pictures after one step, before they are clamped to [0, 1].

    With `graph` the step keeps a graph of weights, latents and, if they require a gradient, pictures.
    """
    if graph:
        return x - differentiable_gradient(energy.energies, x, z=z)[1]
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy.energies(point, z).sum(), point)
    return point.detach() - gradient
