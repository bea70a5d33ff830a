r"""Encoders: recurrent attention, which encodes one object after another with its position, and one vector for global factors."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composable_energy.errors import OptionError
from composable_energy.options import check_choice, check_integer, check_number
from composable_energy_comet.component import POSE, check_picture_size, coordinate_grid, estimate_pose

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
        self.size, self.filters, self.channels = (
            check_picture_size(size),
            check_integer("filters", filters),
            check_integer("channels", channels),
        )
        self.seen = size if seen is None else check_picture_size(seen)
        if self.seen > size:
            raise OptionError(f"seen must be at most the size of pictures, {size}, got {seen}.")
        count = self.cells = max(8, self.seen // 4) if cells is None else cells
        if count not in (self.seen // 2, self.seen // 4):
            raise OptionError(f"cells must be a half or a quarter of the {self.seen} pixels that the encoder reads, got {cells!r}.")
        self.components, self.latent = check_integer("components", components), check_integer("latent", latent)
        self.pose, self.inhibition = pose, inhibition
        self.cap = None if cap is None else check_number("cap", cap, above=0)
        self.look = nn.Sequential(
            nn.Conv2d(channels + 2, filters, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(filters, _WIDTH, 3, self.seen // 2 // count, 1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, 1, 1),
            nn.SiLU(),
        )
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
        nearest = (self.grid - centre[:, None]).square().sum(2).argmin(1)
        glimpse = self._features(x)[torch.arange(len(x), device=x.device), nearest]
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
        network: `"plain"`, three convolutions and a linear layer over all positions; or `"residual"`, the paper's residual blocks with mean
            pooling.

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
        size, filters, channels = check_picture_size(size), check_integer("filters", filters), check_integer("channels", channels)
        self.components, self.latent = check_integer("components", components), check_integer("latent", latent)
        self.size, self.channels, self.network, self.filters = size, channels, network, filters
        numbers = self.components * self.latent
        if check_choice("network", network, ("plain", "residual")) == "plain":
            self.net = nn.Sequential(
                *halving_layers(channels, filters, 64, 64), nn.Linear(64 * (size // 8) ** 2, 256), nn.SiLU(), nn.Linear(256, numbers)
            )
        else:
            self.net = nn.Sequential(
                nn.Conv2d(channels, filters, 3, 1, 1),
                nn.ReLU(),
                *(_Halving(filters) for _ in range(3)),
                _MeanPool(),
                nn.Linear(filters, 64),
                nn.ReLU(),
                nn.Linear(64, numbers),
            )

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


class _MeanPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def halving_layers(*channels: int) -> list[nn.Module]:
    """Returns convolutions that halve height and width, each with an activation, and a flattening layer."""
    layers = (layer for pair in pairwise(channels) for layer in (nn.Conv2d(*pair, 4, 2, 1), nn.SiLU()))
    return [*layers, nn.Flatten()]
