r"""Window energies: quadratic energies of sharp objects, each painted in a small window around its place, on a ground without place."""

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy_comet.component import POSE, TargetEnergy

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
    object, such as those of its faces and its shadow; so it learns edges once for all colors. Outside the window the weight is nearly 0.
    A component with a reach of 0 has no place: it is the ground, a few colors that are interpolated over the whole picture, with weight 1
    everywhere.

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
        self.window, self.ground = check_window(window), check_integer("ground", ground)
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
        pasted = F.grid_sample(painted, self._window_places(pose) + _FAR * is_ground, align_corners=False)
        tint = self.tint(latent).unflatten(1, (self.channels, self.ground, self.ground)) * is_ground
        pictures = pasted[:, :-1] + self.cover @ tint @ self.cover.T
        weights = pasted[:, -1:] - _OUTSIDE * (1 - is_ground)
        return pictures.unflatten(0, z.shape[:2]) + self.image, weights.unflatten(0, z.shape[:2])

    def _window_places(self, pose: Tensor) -> Tensor:
        """Returns the coordinates of pixels in the window, right and down, from -1 to 1 inside, with shape $(B, S, S, 2)$."""
        offset = self.places - pose[:, :2, None, None]
        return (offset / pose[:, 2, None, None, None].clamp(min=_LEAST_REACH)).flip(1).movedim(1, 3)


def check_window(window: int) -> int:
    """Returns the size of a window, or raises `OptionError` if it is not 8, 16, 32, ..."""
    if check_integer("window", window, 8) & (window - 1):
        raise OptionError(f"window must be 8, 16, 32, ..., got {window}.")
    return window


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
