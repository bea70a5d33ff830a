r"""The energies of components by networks that are conditioned on the latent of a component.

The convolutional energy of COMET is minimized by descent. Window energies are quadratic energies of sharp objects, each painted in a small
window around its place, on a ground without place.
"""

import math
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.options import check_choice, check_integer, check_number
from composable_energy_comet.component import POSE, ComponentEnergy, TargetEnergy, check_side, relative_coordinates
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
            h = (h[:, None] + self.place(relative_coordinates(pose, self.places)).unflatten(0, (-1, components))).flatten(0, 1)
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
        shape = (len(x), len(z) // max(1, len(x)))  # pictures, and the components that share their features
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
    """Returns the pictures after one step, not clamped to [0, 1]. `graph` keeps that of weights, latents and pictures that need one."""
    if graph:
        return x - differentiable_gradient(energy.energies, x, z=z)[1]
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy.energies(point, z).sum(), point)
    return point.detach() - gradient


_CELLS = 4  # height and width of the painter's first grid
_OUTSIDE = 10.0  # log weights outside the window are minus this
_LEAST_REACH = 1e-3
_FAR = 4.0  # windows are from -1 to 1
_CONTRAST = 2.0  # of the first shares of colors
_SPREAD = 0.25  # deviation of the first colors of a palette


class WindowEnergy(TargetEnergy):
    r"""A quadratic energy whose targets and weights are painted in a window, $E(x, z) = \tfrac12 \sum_p w_p(z)\, |x_p - r_p(z)|^2$.

    The end of a latent is a pose: the centre of the window, down and right, and its reach, half its side, in coordinates of the picture
    from -1 to 1. A network paints all windows with the same pixels, wherever they are and however large, so it learns an object once, and
    its cost grows with the window and not with the picture. At each pixel it mixes a few colors, which the latent sets for the whole
    object, such as those of its faces and its shadow; so it learns edges once for all colors. Outside the window the weight is nearly 0. A
    component with a reach of 0 has no place: it is the ground, a few colors, interpolated over the whole picture, with weight 1 everywhere.

    Args:
        window: Height and width of the painted window, in pixels: 8, 16, 32, ...
        filters: Channels of the painter's first layer; they are halved at each doubling, down to 16.
        colors: Colors that are mixed in a window.
        ground: Height and width of the grid of the ground's colors.

    References:
        Windows: Attend, infer, repeat (Eslami et al., 2016), https://arxiv.org/abs/1603.08575; Spatial transformer networks (Jaderberg et
        al., 2015), https://arxiv.org/abs/1506.02025.
    """

    cover: Tensor

    def __init__(
        self,
        size: int = 64,
        channels: int = 3,
        latent: int = 24,
        *,
        window: int = 32,
        filters: int = 64,
        colors: int = 6,
        ground: int = 4,
        start: Literal["image", "uniform"] = "image",
    ) -> None:
        super().__init__("comet-window", size=size, channels=channels, latent=latent, coordinates="relative", start=start)
        self.recommended = ce.Recommendation("descent", {"step_size": 0.1}, threads=1)
        self.window, self.ground = check_side("window", window, 8), check_integer("ground", ground)
        self.filters, self.colors = check_integer("filters", filters), check_integer("colors", colors)
        doublings = (window // _CELLS).bit_length() - 1  # 1 or more
        widths = [max(min(16, filters), filters >> i) for i in range(doublings + 1)]
        self.spread = nn.Linear(latent, filters * _CELLS**2)
        self.mix = nn.Conv2d(filters, filters, 3, 1, 1)
        growing = [nn.ConvTranspose2d(*pair, 4, 2, 1) for pair in pairwise(widths)]
        self.grow = nn.Sequential(*(layer for one in growing for layer in (one, nn.SiLU())))
        self.paint = nn.Conv2d(widths[-1], colors + 1, 3, 1, 1)
        mixed = nn.Linear(64, channels * colors)
        self.palette = nn.Sequential(nn.Linear(latent, 64), nn.SiLU(), mixed)
        self.tint = nn.Linear(latent, channels * ground**2)
        cover = F.interpolate(torch.eye(ground)[None], size, mode="linear", align_corners=False)[0].T.contiguous()
        self.register_buffer("cover", cover, persistent=False)  # interpolates colors of the ground to pixels
        initialize(self.spread, self.mix, self.grow, self.palette[0])
        initialize(mixed, gain=0.3)
        nn.init.normal_(mixed.bias, 0, _SPREAD)

    def decode_targets(self, z: Tensor) -> tuple[Tensor, Tensor]:
        latent, pose = z.flatten(0, 1).split([self.latent, POSE], 1)
        is_ground = (pose[:, 2] == 0).to(z)[:, None, None, None]
        h = F.silu(self.spread(latent)).unflatten(1, (-1, _CELLS, _CELLS))
        painted = self.paint(self.grow(h + F.silu(self.mix(h))))
        palette = self.palette(latent).unflatten(1, (self.channels, self.colors))
        mixed = torch.einsum("bkhw,bck->bchw", (_CONTRAST * painted[:, :-1]).softmax(1), palette)
        painted = torch.cat([mixed, painted[:, -1:] + _OUTSIDE], 1)  # so that 0, around the window, is no weight
        offset = (self.places - pose[:, :2, None, None]) / pose[:, 2, None, None, None].clamp(min=_LEAST_REACH)
        pasted = F.grid_sample(painted, offset.flip(1).movedim(1, 3) + _FAR * is_ground, align_corners=False)  # -1 to 1 in the window
        tint = self.tint(latent).unflatten(1, (self.channels, self.ground, self.ground)) * is_ground
        pictures = pasted[:, :-1] + self.cover @ tint @ self.cover.T
        weights = pasted[:, -1:] - _OUTSIDE * (1 - is_ground)
        return pictures.unflatten(0, z.shape[:2]) + self.image, weights.unflatten(0, z.shape[:2])


def initialize(*modules: nn.Module, gain: float = math.sqrt(2)) -> None:
    r"""Draws weights of linear and convolutional layers from a normal distribution with deviation $g / \sqrt{n}$; biases are 0.

    $n$ is the number of inputs of an output; $g = \sqrt 2$ keeps the size through rectified units, 1 through layers without them. torch's
    own initial weights are $\sqrt 6$ times smaller: each layer then shrinks what distinguishes one latent from another, and a decoder of
    five layers begins with nearly the same picture for all (He et al., 2015, https://arxiv.org/abs/1502.01852).
    """
    for layer in (layer for module in modules for layer in module.modules()):
        if isinstance(layer, nn.ConvTranspose2d):  # each output sees only some places of the kernel
            inputs = layer.weight[:, 0].numel() / math.prod(layer.stride)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            inputs = layer.weight[0].numel()
        else:
            continue
        nn.init.normal_(layer.weight, 0, gain / math.sqrt(inputs))
        if isinstance(layer.bias, torch.Tensor):
            nn.init.zeros_(layer.bias)
