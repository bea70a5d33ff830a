"""Sites: the discrete numbers of points, with the values that each takes, and points that differ in one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SiteGroup:
    """Sites that are next to each other in a point.

    Args:
        columns: Where their numbers are in a flattened point.
        counts: How many values each site takes, with shape $(S,)$.
        low: The least value of each, of sites that are one number; None for one-hot rows.
        values: The largest number of values.
    """

    columns: slice
    counts: Tensor
    low: Tensor | None
    values: int

    def indices(self, flat: Tensor) -> Tensor:
        part = flat[:, self.columns]
        return part.unflatten(-1, (len(self.counts), -1)).argmax(-1) if self.low is None else (part - self.low).round().long()

    def numbers(self, index: Tensor, like: Tensor) -> Tensor:
        if self.low is not None:
            return index.to(like.dtype) + self.low
        return torch.nn.functional.one_hot(index.long(), self.values).to(like.dtype).flatten(-2)

    def slopes(self, flat: Tensor, gradient: Tensor, most: int) -> Tensor:
        part, slope = flat[:, self.columns], gradient[:, self.columns]
        if self.low is not None:
            values = self.low[:, None] + torch.arange(most, dtype=flat.dtype, device=flat.device)
            return slope[:, :, None] * (values - part[:, :, None])
        rows, at = (some.unflatten(-1, (len(self.counts), -1)) for some in (slope, part))
        return torch.nn.functional.pad(rows - (rows * at).sum(-1, keepdim=True), (0, most - rows.shape[-1]))


class Sites:
    r"""The discrete numbers of points with shape $(B, *)$. A site is a number, or a row that is one-hot, and has values 0 to $K_s - 1$.

    Args:
        groups: The sites.
        size: How many numbers a point has.
    """

    def __init__(self, groups: Sequence[SiteGroup], size: int) -> None:
        self.groups, self.size = tuple(groups), size

    @cached_property
    def counts(self) -> Tensor:
        """How many values each site takes, $K_s$, with shape $(S,)$."""
        return torch.cat([group.counts for group in self.groups])

    @cached_property
    def allowed(self) -> Tensor:
        r"""Which of $K = \max_s K_s$ values each site takes, with shape $(S, K)$."""
        return torch.arange(max(group.values for group in self.groups), device=self.counts.device) < self.counts[:, None]

    @property
    def mixed(self) -> bool:
        """Whether some numbers of a point are continuous."""
        return sum(group.columns.stop - group.columns.start for group in self.groups) < self.size

    @cached_property
    def free(self) -> Tensor:
        """Which numbers of a flattened point are continuous, with shape $(n,)$."""
        free = torch.ones(self.size, dtype=torch.bool, device=self.counts.device)
        for group in self.groups:
            free[group.columns] = False
        return free

    @cached_property
    def log_states(self) -> float:
        """The logarithm of the number of states."""
        return self.counts.double().log().sum().item()

    def shifted(self, start: int, size: int) -> Sites:
        """Returns the same sites in points of `size` numbers, of which these begin at `start`."""
        groups = (SiteGroup(slice(g.columns.start + start, g.columns.stop + start), g.counts, g.low, g.values) for g in self.groups)
        return Sites(list(groups), size)

    def index(self, x: Tensor) -> Tensor:
        """Returns which value each site has, with shape $(B, S)$."""
        flat = x.reshape(len(x), -1)
        return torch.cat([group.indices(flat) for group in self.groups], 1)

    def place(self, x: Tensor, index: Tensor) -> Tensor:
        """Returns points with other values at their sites, given as by `index`."""
        if len(self.groups) == 1 and self.groups[0].columns == slice(0, self.size):
            return self.groups[0].numbers(index, x).reshape(x.shape)
        flat, start = x.reshape(len(x), -1).clone(), 0
        for group in self.groups:
            flat[:, group.columns] = group.numbers(index[:, start : start + len(group.counts)], flat)
            start += len(group.counts)
        return flat.reshape(x.shape)

    def neighbours(self, x: Tensor, index: Tensor, sites: Tensor) -> Tensor:
        """Returns the points with each value at each of $m$ sites, with shape $(B, m, K, *)$; values beyond $K_s$ repeat the last one."""
        count, values = len(sites), self.allowed.shape[1]
        moved = index[:, None, None].repeat(1, count, values, 1)
        new = torch.minimum(torch.arange(values, device=x.device), self.counts[sites, None] - 1)  # (m, K)
        moved.scatter_(3, sites[None, :, None, None].expand(len(x), -1, values, -1), new[None, :, :, None].expand(len(x), -1, -1, -1))
        wide = x[:, None, None].expand(len(x), count, values, *x.shape[1:])
        return self.place(wide.reshape(-1, *x.shape[1:]), moved.flatten(0, 2)).reshape(wide.shape)

    def slopes(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Returns to first order the change of the energy by each value at each site, with shape $(B, S, K)$."""
        flat, slope = x.reshape(len(x), -1), gradient.reshape(len(x), -1)
        return torch.cat([group.slopes(flat, slope, self.allowed.shape[1]) for group in self.groups], 1)

    def distances(self, x: Tensor) -> Tensor:
        """Returns the squared distances to the points with each value at each site, with shape $(B, S, K)$."""
        flat, most = x.reshape(len(x), -1), self.allowed.shape[1]
        ones = (g.slopes(flat, torch.ones_like(flat), most).square() if g.low is not None else g.slopes(flat, -2 * flat, most) for g in self.groups)
        return torch.cat(list(ones), 1)

    def scatter(self, normals: Tensor) -> Tensor:
        """Returns points whose sites have values that are equally likely, of standard normal numbers; continuous ones stay."""
        flat = normals.reshape(len(normals), -1)
        first = torch.cat([flat[:, g.columns].unflatten(-1, (len(g.counts), -1))[..., 0] for g in self.groups], 1)
        share = torch.special.ndtr(first).clamp(max=1 - torch.finfo(first.dtype).eps)
        return self.place(normals, (share * self.counts).long())


def numbers_between(low: Tensor, high: Tensor, size: int) -> Sites:
    """Returns the sites of points of whole numbers between two ends, with shape $(n,)$ each."""
    counts = (high - low).round().long() + 1
    return Sites([SiteGroup(slice(0, size), counts, low, int(counts.max()))], size)


def one_hot_rows(event: Sequence[int], device: torch.device) -> Sites:
    """Returns the sites of points whose last axis is a one-hot row."""
    size = math.prod(event)
    counts = torch.full((size // event[-1],), event[-1], device=device)
    return Sites([SiteGroup(slice(0, size), counts, None, event[-1])], size)
