r"""Encoders of pictures as components.

Recurrent attention encodes one object after another with its position. Or it finds each object in a small copy, and a glimpse of the large
picture describes it. One vector stands for global factors.
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composable_energy.errors import OptionError
from composable_energy.options import check_choice, check_flag, check_integer, check_number
from composable_energy_comet.component import POSE, check_side, coordinate_grid, estimate_pose
from composable_energy_comet.conv import initialize

_WIDTH = 64  # of features, keys and the recurrent cell
_NEAR = 0.99  # inhibition of the neighbors of a cell, relative to that of the cell
_LEAST = 1e-4  # least remaining attention scope of a cell, so that attention can return


class AttentionEncoder(nn.Module):
    r"""A recurrent network that attends to features of a picture $K$ times. Each glimpse encodes one component.

    The glimpses share all weights and differ by the recurrent state. With `pose`, the centre and the spread of the attention map are
    appended to the latent, so that energies can read coordinates relative to their component. Without them, training hardly finds objects.

    Args:
        components: Number of components $K$.
        seen: Height and width that pictures are averaged to first; `size` if None. At 16 pixels the encoder learns the positions of objects
            in a fraction of the time, and it fits energies of any size.
        inhibition: Whether a glimpse avoids cells that earlier glimpses attended to: their attention, scaled to a maximum of 1, is removed
            from the remaining scope. Without it, several components share one object and other objects get none.
        cap: Bound $c$ of the attention logits, $c \tanh(l / c)$; None for no bound. Without it, attention collapses to one cell early in
            training and stays there, because a saturated softmax has no gradient.
        cells: Height and width of the attention grid, a half or a quarter of `seen`; a quarter, but at least 8, if None. Two objects in one
            cell are hard to separate.

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, appendix A; the pose,
        the coordinate channels, the inhibition and the cap are added. Inhibition is the scope of MONet (Burgess et al., 2019),
        https://arxiv.org/abs/1901.11390, on cells in place of pixels; capped logits are those of Neural combinatorial optimization (Bello
        et al., 2016), https://arxiv.org/abs/1611.09940, equation 16.
    """

    places: Tensor
    grid: Tensor

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        *,
        components: int = 4,
        latent: int = 16,
        pose: bool = True,
        filters: int = 32,
        seen: int | None = None,
        cells: int | None = None,
        inhibition: bool = True,
        cap: float | None = 8.0,
    ) -> None:
        super().__init__()
        self.filters, self.channels = check_integer("filters", filters), check_integer("channels", channels)
        self.size = check_side("size", size)
        self.seen = size if seen is None else check_side("seen", seen)
        if self.seen > size:
            raise OptionError(f"seen must be at most the size of pictures, {size}, got {seen}.")
        count = self.cells = max(8, self.seen // 4) if cells is None else cells
        if count not in (self.seen // 2, self.seen // 4):
            raise OptionError(f"cells must be a half or a quarter of the {self.seen} pixels that the encoder reads, got {cells!r}.")
        self.components, self.latent = check_integer("components", components), check_integer("latent", latent)
        self.pose, self.inhibition = check_flag("pose", pose), check_flag("inhibition", inhibition)
        self.cap = None if cap is None else check_number("cap", cap, above=0)
        shapes = (channels + 2, filters, 2), (filters, _WIDTH, self.seen // 2 // count), *((_WIDTH, _WIDTH, 1),) * 2
        self.look = nn.Sequential(*(layer for a, b, stride in shapes for layer in (nn.Conv2d(a, b, 3, stride, 1), nn.SiLU())))
        self.register_buffer("places", coordinate_grid(self.seen), persistent=False)
        self.register_buffer("grid", coordinate_grid(count).flatten(1).T.contiguous(), persistent=False)
        self.landmarks = nn.Parameter(0.1 * torch.randn(len(self.grid), _WIDTH))
        self.key, self.query = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.cell = nn.LSTMCell(_WIDTH, _WIDTH)
        self.tell = nn.Linear(2 * _WIDTH, latent)

    def forward(self, x: Tensor) -> Tensor:
        """Returns latents with shape $(B, K, D)$ of pictures with shape $(B, C, S, S)$; with `pose` it ends each latent."""
        features = self._features(x)
        keys = self.key(features)
        hidden = memory = features.new_zeros(len(x), _WIDTH)
        latents, scope = [], features.new_ones(features.shape[:2])
        for _ in range(self.components):
            logits = (keys @ self.query(memory)[:, :, None]).squeeze(2) / _WIDTH**0.5
            if self.cap is not None:
                logits = self.cap * (logits / self.cap).tanh()
            attention = (logits + scope.clamp(min=_LEAST).log()).softmax(1)
            if self.inhibition:
                taken = attention.detach() / attention.detach().amax(1, keepdim=True)
                near = F.max_pool2d(taken.unflatten(1, (-1, self.cells))[:, None], 3, 1, 1).flatten(1)
                scope = scope * (1 - torch.maximum(taken, _NEAR * near))
            glimpse = (attention[:, None] @ features).squeeze(1)
            hidden, memory = self.cell(glimpse, (hidden, memory))
            pose = [estimate_pose(attention, self.grid)] if self.pose else []
            latents.append(torch.cat([self.tell(torch.cat([hidden, glimpse], 1)), *pose], 1))
        return torch.stack(latents, 1)

    def tell_at(self, x: Tensor, centre: Tensor) -> Tensor:
        """Returns latents without poses, with shape $(B, D)$, of one glimpse at places with shape $(B, 2)$, as if it were the first."""
        glimpse = self._features(x)[torch.arange(len(x), device=x.device), (self.grid - centre[:, None]).square().sum(2).argmin(1)]
        hidden, _ = self.cell(glimpse)
        return self.tell(torch.cat([hidden, glimpse], 1))

    @property
    def numbers(self) -> int:
        return self.latent + POSE * self.pose

    def _features(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, self.size // self.seen) if self.seen < self.size else x
        return self.look(torch.cat([x, self.places.expand(len(x), -1, -1, -1)], 1)).flatten(2).transpose(1, 2) + self.landmarks


class VectorEncoder(nn.Module):
    r"""Convolutions, then a vector of $K D$ numbers, for factors without a position such as light, camera or expression.

    Args:
        network: `"plain"`, three convolutions and a linear layer over all positions; `"residual"`, the paper's blocks with mean pooling.

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, appendix A.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        *,
        components: int = 4,
        latent: int = 16,
        network: Literal["plain", "residual"] = "plain",
        filters: int = 32,
    ) -> None:
        super().__init__()
        size, filters, channels = check_side("size", size), check_integer("filters", filters), check_integer("channels", channels)
        self.components, self.latent = check_integer("components", components), check_integer("latent", latent)
        self.size, self.channels, self.network, self.filters = size, channels, network, filters
        numbers = self.components * self.latent
        if check_choice("network", network, ("plain", "residual")) == "plain":
            down = halving_layers(channels, filters, 64, 64)
            self.net = nn.Sequential(*down, nn.Linear(64 * (size // 8) ** 2, 256), nn.SiLU(), nn.Linear(256, numbers))
        else:
            blocks = [nn.Conv2d(channels, filters, 3, 1, 1), nn.ReLU(), *(_Halving(filters) for _ in range(3))]
            mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.net = nn.Sequential(*blocks, mean, nn.Linear(filters, 64), nn.ReLU(), nn.Linear(64, numbers))

    def forward(self, x: Tensor) -> Tensor:
        """Returns latents with shape $(B, K, D)$ of pictures with shape $(B, C, S, S)$."""
        return self.net(x).view(len(x), self.components, self.latent)

    @property
    def numbers(self) -> int:
        """$D$, the numbers in a component."""
        return self.latent


class _Halving(nn.Module):
    def __init__(self, filters: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(filters, filters, 3, 1, 1), nn.Conv2d(filters, filters, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(torch.relu(x + self.second(torch.relu(self.first(x)))), 2)


def halving_layers(*channels: int) -> list[nn.Module]:
    """Returns convolutions that halve height and width, each with an activation, and a flattening layer."""
    return [*(layer for pair in pairwise(channels) for layer in (nn.Conv2d(*pair, 4, 2, 1), nn.SiLU())), nn.Flatten()]


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
        self.size, self.channels, self.filters, self.window = size, channels, filters, check_side("window", window, 8)
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
        objects = self._describe(x, hint, centre[:, :2]).unflatten(0, (-1, self.components - 1))
        return torch.cat([F.pad(self.average(F.adaptive_avg_pool2d(x, _SEEN_BY_GROUND) * 2 - 1), (0, POSE))[:, None], objects], 1)

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
        largest = self.window / (self.size - 1)
        coarse = _cut(F.avg_pool2d(x, 2), self.coarse, centre, torch.full_like(centre[:, :1], largest))
        aimed = self.aim(torch.cat([self.locate(coarse * 2 - 1), hint], 1))
        reach = largest * (_REACHES[0] + (_REACHES[1] - _REACHES[0]) * aimed[:, 2:].sigmoid())
        centre = centre + _FIRST_SHIFT * largest * aimed[:, :2].tanh()
        told = self.tell(torch.cat([self.look(self.crop(x, centre, reach).mul(2).sub(1)), hint], 1))
        return torch.cat([told[:, :-2], centre + _SECOND_SHIFT * reach * told[:, -2:].tanh(), reach], 1)


def _middles(pixels: int) -> Tensor:
    """Returns the middles of the pixels of a window, right and down, from -1 to 1, with shape $(W, W, 2)$."""
    line = (torch.arange(pixels) + 0.5) * 2 / pixels - 1
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), 2)


def _cut(x: Tensor, places: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
    grid = places * reach[:, :, None, None] + centre.flip(1)[:, None, None]
    return F.grid_sample(x.repeat_interleave(len(centre) // max(1, len(x)), 0), grid, padding_mode="border", align_corners=True)
