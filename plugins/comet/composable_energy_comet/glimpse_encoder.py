r"""The encoder of sharp objects: attention finds each object in a small copy, and a glimpse of the large picture describes it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy_comet.component import POSE
from composable_energy_comet.encoders import AttentionEncoder, halving_layers
from composable_energy_comet.window import check_window, initialize

_HINT = 16  # numbers that attention tells about an object
_SEEN_BY_GROUND = 16
_FIRST_SHIFT, _SECOND_SHIFT = 0.5, 0.25  # the largest corrections of a centre, in units of the reach
_REACHES = (0.3, 1.1)  # of a window, in units of the largest reach
_FIRST_REACH = 1.5  # before the sigmoid: .95 of the largest reach


class GlimpseEncoder(nn.Module):
    r"""A ground without place, and objects, each with a glimpse of the picture around its place, for `WindowEnergy`.

    The first component is the ground. An `AttentionEncoder` finds the places of the others in a copy of the picture with few pixels. A
    coarse glimpse around each place, with half of the picture's pixels, corrects the place and tells the reach of the window that the
    object fills. Then this window is cut out with all its pixels, so that small and large objects look alike. A network describes it by a
    latent and corrects the place once more.

    Args:
        components: Number of components $K$, with the ground, at least 2.
        window: Height and width of the coarse glimpse in the picture, and of the window in its own pixels: 8, 16, 32, ...
        seen: Height and width of the copy that attention reads; `size` if None.
        again: Further windows of `Comet.encode`, where the picture is explained worst; see `look_again`. Training does without them.

    References:
        Attend, infer, repeat (Eslami et al., 2016), https://arxiv.org/abs/1603.08575; Spatial transformer networks (Jaderberg et al.,
        2015), https://arxiv.org/abs/1506.02025
    """

    pose = True

    def __init__(
        self,
        size: int = 64,
        channels: int = 3,
        *,
        components: int = 5,
        latent: int = 24,
        window: int = 32,
        filters: int = 32,
        seen: int | None = 32,
        again: int = 2,
    ) -> None:
        super().__init__()
        self.components, self.latent = check_integer("components", components, 2), check_integer("latent", latent)
        self.again = check_integer("again", again, 0)
        self.size, self.channels, self.filters, self.window = size, channels, filters, check_window(window)
        if window > size:
            raise OptionError(f"window must be at most the size of pictures, {size}, got {window}.")
        self.find = AttentionEncoder(size, channels, components=components - 1, latent=_HINT, filters=filters, seen=seen)
        self.seen = self.find.seen
        self.locate = nn.Sequential(*halving_layers(channels, 16, 32))
        aim = nn.Linear(64, 3)
        self.aim = nn.Sequential(nn.Linear(32 * (window // 8) ** 2 + _HINT, 64), nn.SiLU(), aim)
        self.look = nn.Sequential(*halving_layers(channels, filters, 64, 64))
        self.tell = nn.Sequential(nn.Linear(window**2 + _HINT, 128), nn.SiLU(), nn.Linear(128, latent + 2))
        self.average = nn.Sequential(*halving_layers(channels, 16, 32), nn.Linear(32 * (_SEEN_BY_GROUND // 4) ** 2, latent))
        self.register_buffer("places", _middles(window), persistent=False)
        self.register_buffer("coarse", _middles(window // 2), persistent=False)
        initialize(self.locate, self.aim[0], self.look, self.tell[0], self.average[:-1])
        initialize(self.tell[-1], self.average[-1], gain=1.0)
        with torch.no_grad():  # all windows begin where attention looks, with one reach
            aim.weight.zero_()
            aim.bias.copy_(torch.tensor([0.0, 0.0, _FIRST_REACH]))

    places: Tensor
    coarse: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Returns latents with shape $(B, K, D)$ of pictures with shape $(B, C, S, S)$; the first is the ground, with a pose of zeros."""
        hint, centre = self.find(x).flatten(0, 1).split([_HINT, POSE], 1)
        objects = self._describe(x, hint, centre[:, :2]).unflatten(0, (len(x), -1))
        ground = F.pad(self.average(F.adaptive_avg_pool2d(x, _SEEN_BY_GROUND) * 2 - 1), (0, POSE))
        return torch.cat([ground[:, None], objects], 1)

    def look_at(self, x: Tensor, centre: Tensor) -> Tensor:
        """Returns one component at places with shape $(B, 2)$, down and right; the component has shape $(B, D)$."""
        return self._describe(x, self.find.tell_at(x, centre), centre)

    def crop(self, x: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
        """Returns the windows around centres with shape $(B K, 2)$, with shape $(B K, C, W, W)$; the border is repeated outside.

        Reaches, with shape $(B K, 1)$, are half of the sides of windows.
        """
        return _cut(x, self.places, centre, reach)

    @property
    def numbers(self) -> int:
        return self.latent + POSE

    def _describe(self, x: Tensor, hint: Tensor, centre: Tensor) -> Tensor:
        centre, reach = self._aim(x, hint, centre)
        told = self.tell(torch.cat([self.look(self.crop(x, centre, reach).mul(2).sub(1)), hint], 1))
        return torch.cat([told[:, :-2], centre + _SECOND_SHIFT * reach * told[:, -2:].tanh(), reach], 1)

    def _aim(self, x: Tensor, hint: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Returns better centres, with shape $(B K, 2)$, and reaches, with shape $(B K, 1)$."""
        largest = self.window / (self.size - 1)
        coarse = _cut(F.avg_pool2d(x, 2), self.coarse, centre, torch.full_like(centre[:, :1], largest))
        aimed = self.aim(torch.cat([self.locate(coarse * 2 - 1), hint], 1))
        share = _REACHES[0] + (_REACHES[1] - _REACHES[0]) * aimed[:, 2:].sigmoid()
        return centre + _FIRST_SHIFT * largest * aimed[:, :2].tanh(), largest * share


def _middles(pixels: int) -> Tensor:
    """Returns the middles of the pixels of a window, right and down, from -1 to 1, with shape $(W, W, 2)$."""
    line = (torch.arange(pixels) + 0.5) * 2 / pixels - 1
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), 2)


def _cut(x: Tensor, places: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
    grid = places * reach[:, :, None, None] + centre.flip(1)[:, None, None]
    return F.grid_sample(x.repeat_interleave(len(centre) // len(x), 0), grid, padding_mode="border", align_corners=True)
