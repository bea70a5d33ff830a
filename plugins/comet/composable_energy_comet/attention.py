r"""The encoder of objects: recurrent attention, which looks at one place after another and tells what is there, and where."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composable_energy.errors import OptionError
from composable_energy_comet.options import picture_size, positive, whole
from composable_energy_comet.places import POSE, coordinates, pose_of

__all__ = ["AttentionEncoder"]

_WIDTH = 64  # of features, keys and the recurrent cell
_NEAR = 0.99  # of what a look takes of a cell, it takes of the cells around
_LEAST = 1e-4  # of the room that is left, so that a look can come back where all else is less


class AttentionEncoder(nn.Module):
    r"""A recurrent network that attends to features of a picture $K$ times; each look gives the latent of one component.

    The looks share all weights and differ by what was seen before. With `pose`, the middle and the spread of each look's attention follow
    its latent: the energies can then see pixels relative to their component, without which objects are hardly found.

    Args:
        size: $S$, height and width of pictures.
        channels: Of pictures.
        components: $K$.
        latent: Numbers of a component, without its pose.
        pose: Whether its pose is told.
        filters: Of the first convolution.
        seen: The height and width that pictures are averaged to before; `size` if None. An encoder that sees 16 pixels learns in a fraction
            of the time where objects are, and fits energies of any size.
        inhibition: Whether a look turns away from what earlier ones saw: their attention, the highest as 1, is taken off the room that is
            left. Without it several components come to one object, and others have none.
        cap: The size $c$ of the attention's logits, which are $c \tanh(l / c)$; None for logits without bounds. Without it looks narrow to
            one cell while little is learnt, and nothing moves them from there: no gradient comes through a softmax that is 1 in one place.
        cells: Height and width of the grid that is attended to, a half or a quarter of `seen`; a quarter, but at least 8, if None. Two
            objects in one cell are hardly told apart.

    Raises:
        OptionError: An option is out of range.

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, appendix A; the pose,
        the coordinate channels, the inhibition and the cap are added. Inhibition is the scope of MONet (Burgess et al., 2019),
        https://arxiv.org/abs/1901.11390, on cells in place of pixels; capped logits are those of Neural combinatorial optimization (Bello
        et al., 2016), https://arxiv.org/abs/1611.09940, equation 16.
    """

    places: Tensor
    cells: Tensor

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
        self.size, filters = picture_size(size), whole("filters", filters)
        self.seen = size if seen is None else picture_size(seen)
        if self.seen > size:
            raise OptionError(f"An encoder sees at most the {size} pixels that pictures have, got {seen}.")
        count = max(8, self.seen // 4) if cells is None else cells
        if count not in (self.seen // 2, self.seen // 4):
            raise OptionError(f"cells is a half or a quarter of the {self.seen} pixels that the encoder sees, got {cells!r}.")
        self.components, self.pose, self.inhibition = whole("components", components), pose, inhibition
        self.cap = None if cap is None else positive("cap", cap)
        self.look = nn.Sequential(
            nn.Conv2d(whole("channels", channels) + 2, filters, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(filters, _WIDTH, 3, self.seen // 2 // count, 1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, 1, 1),
            nn.SiLU(),
        )
        self.register_buffer("places", coordinates(self.seen), persistent=False)
        self.register_buffer("cells", coordinates(count).flatten(1).T.contiguous(), persistent=False)
        self.landmarks = nn.Parameter(0.1 * torch.randn(len(self.cells), _WIDTH))
        self.key, self.query = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.cell = nn.LSTMCell(_WIDTH, _WIDTH)
        self.tell = nn.Linear(2 * _WIDTH, whole("latent", latent))

    def forward(self, x: Tensor) -> Tensor:
        """Returns latents with shape $(B, K, D)$ of pictures with shape $(B, C, S, S)$; with `pose` it is their last three numbers."""
        x = F.avg_pool2d(x, self.size // self.seen) if self.seen < self.size else x
        features = self.look(torch.cat([x, self.places.expand(len(x), -1, -1, -1)], 1)).flatten(2).transpose(1, 2) + self.landmarks
        keys = self.key(features)
        hidden = memory = features.new_zeros(len(x), _WIDTH)
        told, room = [], features.new_ones(features.shape[:2])
        for _ in range(self.components):
            logits = (keys @ self.query(memory)[:, :, None]).squeeze(2) / _WIDTH**0.5
            if self.cap is not None:
                logits = self.cap * (logits / self.cap).tanh()
            attention = (logits + room.clamp(min=_LEAST).log()).softmax(1)
            if self.inhibition:
                taken = attention.detach() / attention.detach().amax(1, keepdim=True)
                near = F.max_pool2d(taken.unflatten(1, (-1, math.isqrt(len(self.cells))))[:, None], 3, 1, 1).flatten(1)
                room = room * (1 - torch.maximum(taken, _NEAR * near))
            seen = (attention[:, None] @ features).squeeze(1)
            hidden, memory = self.cell(seen, (hidden, memory))
            where = [pose_of(attention, self.cells)] if self.pose else []
            told.append(torch.cat([self.tell(torch.cat([hidden, seen], 1)), *where], 1))
        return torch.stack(told, 1)

    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        first = cast(nn.Conv2d, self.look[0])
        told = {"components": self.components, "latent": self.tell.out_features, "pose": self.pose, "filters": first.out_channels}
        told |= {"seen": self.seen, "cells": math.isqrt(len(self.cells)), "inhibition": self.inhibition}
        told["cap"] = self.cap
        return {"size": self.size, "channels": first.in_channels - 2, **told}

    @property
    def numbers(self) -> int:
        """How many numbers a component has, with its pose."""
        return self.tell.out_features + POSE * self.pose
