r"""Unconstrained coordinates $u$ of supports: maps $x = T(u)$ from $\mathbb{R}^k$, with their change of volume.

If $x = T(u)$ has the density $e^{-E(x)}$ on the support, then $u$ has the density $e^{-E(T(u)) + v(u)}$, where
$v = \log \lvert \det dT/du \rvert$ for a bijection. On a sphere, $T(u) = u / \lVert u \rVert$ drops the radius, and $e^v$ contains a
density of it; on a circle it drops the number of turns. There $e^v$ has the integral 1 over what is dropped, as the density needs.

Torch clips its simplex at the rounding of 1, which in float32 is a fifth of the mass of a Dirichlet(.1). Its intervals cannot be open at
one end of some coordinates, and it has no bijection for triangular and positive definite matrices. Other supports use `biject_to`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.nn import functional as F

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import ShapeError
from composable_energy.supports import sets
from composable_energy.supports.sets import Bound, Support, contains, cut, ends_of, format_support, is_joined, plain
from composable_energy.supports.variables import SiteGroup, Sites, map_support

Map = Callable[[Tensor], tuple[Tensor, ...]]
_NEAR = 1e-3  # a gauge whose square, times a rounding, counts no more


class Coordinates(ABC):
    """Abstract coordinates of the points of a support; `event` is the shape of a point, `shape` that of coordinates, if it differs."""

    sites: Sites | None = None

    def __init__(self, event: Sequence[int], shape: Sequence[int] | None = None, *, within: bool = False) -> None:
        self.event, self.within = torch.Size(event), within  # whether points are inside of the support after rounding, too
        self.shape = self.event if shape is None else torch.Size(shape)

    @abstractmethod
    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the points, with shape $(B, *)$, and the logarithms $v$ of the change of volume, with shape $(B,)$."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Tensor:
        """Returns the coordinates of points of the support; on a sphere those with a typical radius."""

    def inner(self, like: Tensor) -> Tensor:
        """Returns the coordinates of one point inside the support, with a first axis of 1 and the dtype and device of a tensor."""
        return like.new_full((1, *self.shape), 0.1)  # at 0 a radius has no direction

    def rounding(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns how far rounding points to a dtype moves them, by the features of their coordinates, with shape $(B,)$."""
        x = self.points(u)[0].to(dtype)
        x = torch.where(x.abs() < torch.finfo(dtype).smallest_normal, 0.0, x)  # gradients overflow there
        return (self.features(self.inverse(x.to(u.dtype))) - self.features(u)).abs().nan_to_num(math.inf).reshape(len(u), -1).amax(1)

    def features(self, u: Tensor) -> Tensor:
        """Returns numbers that are equal for equal points and continuous, with shape $(B, *)$, to compare chains by."""
        return u


class Identity(Coordinates):
    """Points themselves: real or discrete numbers."""

    def __init__(self, event: Sequence[int], sites: Sites | None = None) -> None:
        super().__init__(event, within=True)
        self.sites = sites

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return u, u.new_zeros(len(u))

    def inverse(self, x: Tensor) -> Tensor:
        return x

    def inner(self, like: Tensor) -> Tensor:
        zeros = like.new_zeros((1, *self.shape))
        return zeros if self.sites is None else self.sites.place(zeros, self.sites.counts.new_zeros((1, len(self.sites.counts))))


class Bijection(Coordinates):
    """The bijection that torch registers for a constraint."""

    def __init__(self, support: Any, event: Sequence[int]) -> None:
        self.transform: Any = biject_to(sets.check_support(support))  # pyright: ignore[reportArgumentType]
        super().__init__(event, self.transform.inverse_shape(torch.Size(event)))

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return (x := self.transform(u)), _total(self.transform.log_abs_det_jacobian(u, x))

    def inverse(self, x: Tensor) -> Tensor:
        return self.transform.inv(x)


class Box(Coordinates):
    """Logistic coordinates of an interval, exponential ones of a half-line, and points themselves where both ends are infinite."""

    def __init__(self, event: Sequence[int], ends: tuple[Bound, Bound], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(event, within=True)
        low, high = (torch.as_tensor(end, dtype=dtype, device=device) for end in ends)
        try:
            low, high = low.expand(self.event), high.expand(self.event)
        except RuntimeError as error:
            raise ShapeError(
                f"The ends of an interval have the shapes {tuple(low.shape)} and {tuple(high.shape)}, the points {tuple(event)}."
            ) from error
        self.below, self.above = low.isfinite(), high.isfinite()
        most, pairs = torch.finfo(dtype).max / 2, ((ends[0], self.below), (ends[1], self.above))  # larger numbers may round to infinity
        self.lower, upper = (mask if isinstance(end, Tensor) or most < abs(end) < math.inf else math.isfinite(end) for end, mask in pairs)
        self.both, self.one = self.lower & upper, self.lower ^ upper
        self.low, self.high = torch.where(self.below, low, 0.0), torch.where(self.above, high, 0.0)
        self.width = torch.where(self.below & self.above, self.high - self.low, 1.0)
        least = torch.finfo(low.dtype).smallest_normal  # gradients of a density overflow at smaller distances from 0
        self.least = torch.where(self.below, torch.maximum(torch.nextafter(low, torch.full_like(low, math.inf)), low + least), -math.inf)
        self.most = torch.where(self.above, torch.minimum(torch.nextafter(high, torch.full_like(high, -math.inf)), high - least), math.inf)

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        beyond = partial(_choose, self.lower, lambda u: (self.low + u.exp(), u), lambda u: (self.high - u.exp(), u))
        x, volume = _choose(self.both, self._between, partial(_choose, self.one, beyond, lambda u: (u, torch.zeros_like(u))), u)
        return torch.maximum(torch.minimum(x, self.most), self.least), _total(volume)

    def _between(self, u: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.where(u < 0, self.low + self.width * u.sigmoid(), self.high - self.width * (-u).sigmoid())
        return x, self.width.log() + F.logsigmoid(u) + F.logsigmoid(-u)

    def inverse(self, x: Tensor) -> Tensor:
        both, one = self.below & self.above, self.below ^ self.above
        logistic = torch.where(both, x - self.low, 1.0).log() - torch.where(both, self.high - x, 1.0).log()
        half = torch.where(one, torch.where(self.below, x - self.low, self.high - x), 1.0).log()
        return torch.where(both, logistic, torch.where(one, half, x))


class Simplex(Coordinates):
    """Stick-breaking: each coordinate is the logit of a share of what the earlier ones leave, 0 at equal shares."""

    def __init__(self, event: Sequence[int]) -> None:
        super().__init__(event, (*event[:-1], event[-1] - 1))

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        logit = u - self._offset(u)
        taken, left = F.logsigmoid(logit), F.logsigmoid(-logit)
        log_x = F.pad(left.cumsum(-1), [1, 0]) + F.pad(taken, [0, 1])
        return log_x.exp().clamp_min(torch.finfo(u.dtype).smallest_normal), _total(log_x[..., :-1] + left)  # a density may be infinite at 0

    def inverse(self, x: Tensor) -> Tensor:
        logit = x[..., :-1].log() - x.flip(-1).cumsum(-1).flip(-1)[..., 1:].log()
        return logit + self._offset(logit)

    def _offset(self, u: Tensor) -> Tensor:
        return torch.arange(u.shape[-1], 0, -1, dtype=u.dtype, device=u.device).log()


class Ordered(Coordinates):
    """The first number, or its logarithm where all are positive, and the logarithms of the steps from each number to the next one."""

    def __init__(self, event: Sequence[int], *, positive: bool = False) -> None:
        super().__init__(event)
        self.free = 0 if positive else 1  # coordinates that are no logarithms

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        logs = u[..., self.free :]
        x = torch.cat([u[..., : self.free], logs.exp()], -1).cumsum(-1)
        return x if self.free else x.clamp_min(torch.finfo(u.dtype).smallest_normal), _total(logs)

    def inverse(self, x: Tensor) -> Tensor:
        steps = x.diff(dim=-1, prepend=torch.zeros_like(x[..., :1]))
        return torch.cat([steps[..., : self.free], steps[..., self.free :].log()], -1)


class ZeroSum(Coordinates):
    """Orthonormal coordinates of vectors whose sum is 0, by a reflection: volumes stay, and normal ones have a covariance of I - 1/n."""

    def __init__(self, event: Sequence[int]) -> None:
        super().__init__(event, (*event[:-1], event[-1] - 1))

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        total, root = u.sum(-1, keepdim=True), math.sqrt(self.event[-1])
        return torch.cat([u - total / (root + root**2), -total / root], -1), _total(torch.zeros_like(u))

    def inverse(self, x: Tensor) -> Tensor:
        return x[..., :-1] - x[..., -1:] / (1 + math.sqrt(self.event[-1]))


class Directions(Coordinates):
    r"""Directions $u / \lVert u \rVert$ of vectors whose radius has a chi distribution.

    It has 3 degrees of freedom at least: with fewer the gradient near the origin has no finite variance.
    """

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        radius, degrees = u.norm(dim=-1, keepdim=True), max(u.shape[-1], 3)
        constant = (degrees / 2 - 1) * math.log(2) + math.lgamma(degrees / 2)
        return u / radius, _total(((degrees - u.shape[-1]) * radius.log() - radius.square() / 2 - constant).squeeze(-1))

    def inverse(self, x: Tensor) -> Tensor:
        return x * math.sqrt(max(x.shape[-1], 3) - 1)

    def features(self, u: Tensor) -> Tensor:
        return u / u.norm(dim=-1, keepdim=True)


class Angles(Coordinates):
    r"""Numbers $u$ on the line that are angles modulo $2\pi$, in a smooth window so that their density has an integral.

    The window $h(u) = (\sigma((u + n\pi) / w) - \sigma((u - n\pi) / w)) / n$, with the logistic $\sigma$, has $\sum_k h(x + 2\pi k) = 1$
    for all x. So the angles have exactly the density on the circle. With $n = 3$ turns and $w = 1$, $h$ is flat near the starts: chains
    that stay at one turn are right, too. They would miss two thirds of an integral, so `once` takes one turn with steep ends.
    """

    def __init__(self, event: Sequence[int], once: bool) -> None:
        super().__init__(event)
        self.turns, self.width = (1, 0.02) if once else (3, 1.0)

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        end, v = self.turns * math.pi / self.width, u / self.width
        window = F.logsigmoid(v + end) + F.logsigmoid(end - v) + math.log1p(-math.exp(-2 * end)) - math.log(self.turns)
        return torch.remainder(u + math.pi, 2 * math.pi) - math.pi, _total(window)

    def inverse(self, x: Tensor) -> Tensor:
        return torch.remainder(x + math.pi, 2 * math.pi) - math.pi

    def features(self, u: Tensor) -> Tensor:
        return torch.cat([u.cos(), u.sin()], -1) if u.ndim > 1 else torch.stack([u.cos(), u.sin()], -1)


class Gauge(Coordinates):
    r"""Rays from a point $c$ inside of a polytope: $x = c + u \tanh(g) / g$, with the gauge $g = \max_i a_i u / (b_i - a_i c)$, or 0."""

    def __init__(self, event: Sequence[int], support: Any) -> None:
        super().__init__(event)
        self.middle, slacks = support.inside, support.bounds - support.matrix @ support.inside
        if event[-1] != len(self.middle):
            raise ShapeError(f"The support {format_support(support)} is for rows of {len(self.middle)} numbers, got {tuple(event)}.")
        self.slopes = (support.matrix / slacks[:, None]).mT

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        gauge = (u @ self.slopes).amax(-1, keepdim=True).clamp_min(0)
        far = gauge.clamp_min(_NEAR)
        ratio = torch.where(gauge < _NEAR, 1 - gauge.square() / 3, far.tanh() / far)
        volume = (u.shape[-1] - 1) * ratio.log() + 2 * (math.log(2) - gauge - F.softplus(-2 * gauge))
        return self.middle + (1 - 8 * torch.finfo(u.dtype).eps) * ratio * u, _total(volume[..., 0])

    def inverse(self, x: Tensor) -> Tensor:
        gauge = ((x - self.middle) @ self.slopes).amax(-1, keepdim=True).clamp_min(0)
        return (x - self.middle) * torch.where(gauge < _NEAR, 1 + gauge.square() / 3, gauge.atanh() / gauge.clamp_min(_NEAR))


class Triangular(Coordinates):
    """Entries of a triangular matrix $L$ row by row, with logarithms on a positive diagonal; $L L^T$ for a positive definite matrix."""

    def __init__(self, event: Sequence[int], name: str) -> None:
        if event[-2] != (size := event[-1]):
            raise ShapeError(f"The support {name} is for square matrices, got {tuple(event)}.")
        super().__init__(event, (*event[:-2], size * (size + 1) // 2))
        self.size, self.positive, self.squared = size, name != "lower_triangular", name.startswith("positive")
        self.scale = 0.5 if self.squared else 1.0  # variances, not standard deviations, are exponentials

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = torch.tril_indices(self.size, self.size, device=u.device)
        lower = u.new_zeros((*u.shape[:-1], self.size**2)).index_copy(-1, rows * self.size + columns, u)
        lower = lower.unflatten(-1, (self.size, self.size))
        logs = lower.diagonal(dim1=-2, dim2=-1)
        if not self.positive:
            return lower, _total(torch.zeros_like(logs))
        lower = lower.tril(-1) + torch.diag_embed((self.scale * logs).exp())
        if not self.squared:
            return lower, _total(logs)
        return lower @ lower.mT, _total((1 + torch.arange(self.size, 0, -1, dtype=u.dtype, device=u.device)) * self.scale * logs)

    def inverse(self, x: Tensor) -> Tensor:
        lower = torch.linalg.cholesky(x) if self.squared else x
        if self.positive:
            lower = lower.tril(-1) + torch.diag_embed(lower.diagonal(dim1=-2, dim2=-1).log() / self.scale)
        rows, columns = torch.tril_indices(self.size, self.size, device=x.device)
        return lower[..., rows, columns]


def _choose(mask: Tensor | bool, one: Map, other: Map, u: Tensor) -> tuple[Tensor, ...]:
    """Returns what one map makes of coordinates where a mask holds, and another elsewhere; a mask is one bool for all if that is known."""
    if isinstance(mask, bool):
        return one(u) if mask else other(u)
    return tuple(torch.where(mask, *pair) for pair in zip(one(torch.where(mask, u, 0.0)), other(torch.where(mask, 0.0, u)), strict=True))


def _total(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1) if values.ndim > 1 else values


class _Parts(Coordinates):
    """The coordinates of the parts of a `cat` or `stack`, one after another in a vector."""

    def __init__(self, support: Any, event: Sequence[int], dtype: torch.dtype, device: torch.device, once: bool) -> None:
        self.support = support
        shapes = [some.shape[1:] for some in cut(support, torch.empty((1, *event)))]
        self.parts = [coordinates_of(part, of, dtype, device, once) or Identity(of) for part, of in zip(support.cseq, shapes, strict=True)]
        self.sizes = [part.shape.numel() for part in self.parts]
        super().__init__(event, (sum(self.sizes),), within=all(part.within for part in self.parts))
        found = list[SiteGroup]()
        for part, start in zip(self.parts, accumulate([0, *self.sizes]), strict=False):
            for group in () if part.sites is None else part.sites.groups:
                found.append(replace(group, columns=slice(group.columns.start + start, group.columns.stop + start)))
        self.sites = Sites(found, sum(self.sizes)) if found else None

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        found = [part.points(values) for part, values in self._split(u)]
        join = torch.stack if isinstance(self.support, constraints.stack) else torch.cat
        return join([x for x, _ in found], sets.axis_of(self.support)), torch.stack([volume for _, volume in found]).sum(0)

    def inverse(self, x: Tensor) -> Tensor:
        pairs = zip(self.parts, cut(self.support, x), strict=True)
        return torch.cat([part.inverse(values).reshape(len(x), -1) for part, values in pairs], 1)

    def inner(self, like: Tensor) -> Tensor:
        return torch.cat([part.inner(like).reshape(1, -1) for part in self.parts], 1)

    def features(self, u: Tensor) -> Tensor:
        return torch.cat([part.features(values).reshape(len(u), -1) for part, values in self._split(u)], 1)

    def _split(self, u: Tensor) -> list[tuple[Coordinates, Tensor]]:
        return [(part, values.reshape(len(u), *part.shape)) for part, values in zip(self.parts, u.split(self.sizes, -1), strict=True)]


def coordinates_of(
    support: Support, event: Sequence[int], dtype: torch.dtype, device: torch.device, once: bool = False
) -> Coordinates | None:
    """Returns the coordinates of a support for points of a shape; None for all of R^n. With `once`, each angle has one place."""
    if plain(support) is None:
        return None
    inner: Any = map_support(plain(support), lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype))
    if len(event) < (1 if is_joined(inner) else inner.event_dim):
        raise ShapeError(f"The support {format_support(inner)} is for points of {inner.event_dim} axes at least, got {tuple(event)}.")
    if (ends := ends_of(inner)) is not None:
        return Box(event, ends, dtype, device)
    if is_joined(inner):
        return _Parts(inner, event, dtype, device, once)
    if inner.is_discrete:
        return Identity(event, _sites_of(inner, torch.Size(event), dtype, device))
    if (name := sets.name_of(inner)) in sets.MATRICES:
        return Triangular(event, name)
    known: dict[str | None, Callable[[Sequence[int]], Coordinates]] = {"sphere": Directions, "simplex": Simplex}
    known |= {
        "circle": partial(Angles, once=once),
        "polytope": partial(Gauge, support=inner),
        "ordered": Ordered,
        "positive_ordered": partial(Ordered, positive=True),
        "zero_sum": ZeroSum,
    }
    return known[name](event) if name in known else Bijection(inner, event)


def _sites_of(support: Any, event: torch.Size, dtype: torch.dtype, device: torch.device) -> Sites:
    """Returns the sites of points of a discrete support; numbers without end, which no sampler takes, have one value."""
    size, ends = event.numel(), sets.integer_ends_of(support)
    if ends is None:  # rows that are one-hot
        low, most, counts = None, event[-1], torch.full((size // event[-1],), event[-1], device=device)
    else:
        low, high = (torch.as_tensor(end, dtype=dtype, device=device).expand(event).flatten() for end in ends)
        counts = (torch.where(high.isfinite(), high, low) - low).round().long() + 1
        most = int(counts.max())
    return Sites([SiteGroup(slice(0, size), counts, low, most)], size)


def interior(support: Support, x: Tensor) -> Tensor:
    """Returns one point inside a support, with the shape, dtype and device of points with shape $(B, *)$ and a first axis of 1."""
    if is_joined(inner := cast(Any, plain(support))):
        join = torch.stack if isinstance(inner, constraints.stack) else torch.cat
        return join([interior(part, some) for part, some in zip(inner.cseq, cut(inner, x[:1]), strict=True)], sets.axis_of(inner))
    low, high = ends_of(inner) or (None, None)
    if isinstance(low, int | float) and isinstance(high, int | float):  # without coordinates, which take as long as a small energy
        middle = low + min(1.0, (high - low) / 2) if low > -math.inf else min(high - 1.0, 0.0)
        if low + 0.01 * abs(middle) < middle < high - 0.01 * abs(middle):
            return torch.full_like(x[:1], middle)
    coordinates = coordinates_of(support, x.shape[1:], x.dtype, x.device)
    return torch.zeros_like(x[:1]) if coordinates is None else coordinates.points(coordinates.inner(x))[0]


def evaluate_inside(support: Support, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Returns energies that are $\infty$ with zero gradient outside a support, where the function gets a point inside instead."""
    inside = contains(support, x.detach())
    if (energies := function(torch.where(unsqueeze_to(inside, x), x, interior(support, x)))).shape != inside.shape:  # the caller reports it
        return energies
    return torch.where(inside, energies, torch.inf).masked_fill(x.isnan().flatten(1).any(1) if x.ndim > 1 else x.isnan(), torch.nan)
