r"""Unconstrained coordinates of supports.

If $x = T(u)$ has the density $e^{-E(x)}$ on the support, then $u$ has the density $e^{-E(T(u)) + v(u)}$, where
$v = \log \lvert \det dT/du \rvert$ for a bijection. On a sphere, $T(u) = u / \lVert u \rVert$ drops the radius, and $e^v$ contains a
density of it; on a circle it drops the number of turns. There $e^v$ has the integral 1 over the dropped coordinate, so the integral of the
density stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.coordinate_maps import Angles, Bijection, Coordinates, Directions, Interval, Simplex, Triangular
from composable_energy.errors import ShapeError
from composable_energy.supports import Support, contains, ends_of, format_support, map_support, name_of, plain

__all__ = ["Coordinates", "coordinates_of", "evaluate_inside", "interior"]


def coordinates_of(support: Support, event: Sequence[int], dtype: torch.dtype, device: torch.device) -> Coordinates | None:
    """Returns the coordinates of a support for points of a shape; None for all of R^n.

    Raises:
        ShapeError, OptionError: The support is for points of another shape, or has no coordinates.
    """
    support = map_support(plain(support), lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype))
    if support is None:
        return None
    if len(event) < (support.event_dim if not isinstance(support, constraints.cat | constraints.stack) else 1):
        raise ShapeError(f"The support {format_support(support)} is for points of {support.event_dim} axes at least, got {tuple(event)}.")
    ends = ends_of(support)
    if ends is not None:
        return Interval(event, *(torch.as_tensor(end, dtype=dtype, device=device) for end in ends))
    if isinstance(support, constraints.cat | constraints.stack):
        return _Parts(support, event, dtype, device)
    match name_of(support):
        case "circle":
            return Angles(event)
        case "sphere":
            return Directions(event)
        case "simplex":
            return Simplex(event)
        case "lower_triangular" | "lower_cholesky" | "positive_definite" | "positive_semidefinite":
            return Triangular(event, str(name_of(support)))
    return Bijection(support, event)


def interior(support: Support, x: Tensor) -> Tensor:
    """Returns one point inside a support, with the shape, dtype and device of points with shape $(B, *)$ and a first axis of 1."""
    coordinates = coordinates_of(support, x.shape[1:], x.dtype, x.device)
    if coordinates is None:
        return torch.zeros_like(x[:1])
    return coordinates.points(x.new_full((1, *coordinates.shape), 0.1))[0]  # at 0 a radius has no direction


def evaluate_inside(support: Support, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Returns energies that are $\infty$ with zero gradient outside a support, where the function gets a point inside instead.

    Args:
        support: The support.
        x: The points, with shape $(B, *)$.
        function: The energies, with shape $(B,)$, of points inside.
    """
    inside = contains(support, x.detach())
    energies = function(torch.where(unsqueeze_to(inside, x), x, interior(support, x)))
    if energies.shape != inside.shape:  # the caller reports it
        return energies
    broken = x.isnan().flatten(1).any(1) if x.ndim > 1 else x.isnan()
    return torch.where(inside, energies, torch.inf).masked_fill(broken, torch.nan)


class _Parts(Coordinates):
    """The coordinates of the parts of a `cat` or `stack`, one after another in a vector."""

    def __init__(self, support: Any, event: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.stacked = isinstance(support, constraints.stack)
        self.axis = support.dim if support.dim < 0 else support.dim - len(event)
        if not -len(event) <= self.axis < 0:
            raise ShapeError(f"The support {format_support(support)} joins along axis {support.dim}, the points have shape {tuple(event)}.")
        self.lengths = [1] * len(support.cseq) if self.stacked else list(support.lengths)
        if sum(self.lengths) != event[self.axis]:
            raise ShapeError(f"The support {format_support(support)} has length {sum(self.lengths)}, the points have shape {tuple(event)}.")
        before, after = list(event[: self.axis]), list(event[self.axis :][1:])
        middle: list[list[int]] = [[] if self.stacked else [length] for length in self.lengths]
        self.parts = [
            coordinates_of(part, before + own + after, dtype, device) or Interval(before + own + after, *_line(dtype, device))
            for part, own in zip(support.cseq, middle, strict=True)
        ]
        self.sizes = [part.shape.numel() for part in self.parts]
        super().__init__(event, (sum(self.sizes),))

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        found = [part.points(values) for part, values in self._split(u)]
        join = torch.stack if self.stacked else torch.cat
        return join([x for x, _ in found], self.axis), torch.stack([volume for _, volume in found]).sum(0)

    def inverse(self, x: Tensor) -> Tensor:
        some = x.unbind(self.axis) if self.stacked else x.split(self.lengths, self.axis)
        return torch.cat([part.inverse(values).reshape(len(x), -1) for part, values in zip(self.parts, some, strict=True)], 1)

    def rounding(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.stack([part.rounding(values, dtype) for part, values in self._split(u)]).amax(0)

    def features(self, u: Tensor) -> Tensor:
        return torch.cat([part.features(values).reshape(len(u), -1) for part, values in self._split(u)], 1)

    def _split(self, u: Tensor) -> list[tuple[Coordinates, Tensor]]:
        some = zip(self.parts, u.split(self.sizes, -1), strict=True)
        return [(part, values.reshape(len(u), *part.shape)) for part, values in some]


def _line(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(end, dtype=dtype, device=device) for end in (-math.inf, math.inf))  # pyright: ignore[reportReturnType]
