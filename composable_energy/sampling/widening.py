"""Terms without noise levels at a noise level, for data that vary around a denoised point: precise terms pull less there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to

__all__ = ["Widened", "widen"]

_STEPS, _TOLERANCE = 3, 0.1
_REACH, _FLAT, _RISING = 4.0, 0.1, 0.3
_PRECISE = 10.0


class Widened(NamedTuple):
    r"""The gradient of terms without noise levels, for data that vary around the denoised points.

    Args:
        slope: $(I + v H)^{-1} g$, with shape $(B, *)$.
        pull: $C (I + v H)^{-1} g$, with the same shape.
        rise: How much higher the log density is than at the denoised point, $v\, g^\top (I + v H)^{-1} g / 2$, with shape $(B,)$.
    """

    slope: Tensor
    pull: Tensor
    rise: Tensor


def widen(z: Tensor, slope: Tensor, pulled: Tensor, sigma: float, slope_at: Callable[[Tensor], Tensor]) -> Widened:
    r"""Widens terms by the variance of the data around denoised points along the gradient, $v = \sigma^2\, g^\top C g / g^\top g$.

    For a quadratic energy the result is the gradient of $-\log \mathbb E\, e^{-E(z + \sqrt v\, \xi)}$ with standard normal $\xi$, by at
    most three conjugate gradients. Products with its second derivative $H$ are differences over the length $\sqrt v$ downhill. So an
    energy with a kink or a plateau counts with its mean curvature where the data may be; a negative curvature counts as none.

    An energy that levels off downhill, as the evidence of a classifier, is not widened. Such evidence chooses among modes of the data, and
    the choice follows it more than a Gaussian does. Widened are energies that rise again farther downhill, where data alone would
    not go, and those whose curvature is above ten times that of the data alone; in between, in part.

    Args:
        z: The denoised points, with shape $(B, *)$.
        slope: $g$, with the same shape.
        pulled: $C g$, as `denoised_pull` returns it.
        sigma: $\sigma$.
        slope_at: The gradient as a function of points.
    """
    tiny = torch.finfo(z.dtype).tiny
    squares = _product(slope, slope).clamp_min(tiny)
    share = (_product(slope, pulled) / squares).clamp(min=0)
    variance, known = sigma**2 * share.clamp(max=1), (1 - share).clamp_min(0.01)
    near = slope_at(z - unsqueeze_to((variance / squares).sqrt(), z) * slope)
    found = _solve(z, slope, near, variance, slope_at)
    precision = (squares / _product(slope, found).clamp_min(tiny) - 1) / known  # in units of the variance of the data alone, v / known
    reach = _REACH * variance / known / (1 + precision)
    far = _product(slope, slope_at(z - unsqueeze_to(reach, z) * slope)) / squares
    found = found * unsqueeze_to(_lengthen(_product(slope, near) / squares, far, variance, (variance / squares).sqrt(), reach), z)
    curvature = squares / _product(slope, found).clamp_min(tiny) - 1  # in units of 1 / v
    rising = (-far - _FLAT) / (_RISING - _FLAT)
    weight = torch.maximum(rising.nan_to_num(0.0).clamp(0, 1), 1 / (1 + (_PRECISE / precision.clamp_min(tiny)) ** 4))
    found = found * unsqueeze_to((1 + curvature) / (1 + weight * curvature), z)
    along = unsqueeze_to(_product(slope, found) / squares, z)
    pull = along * pulled + unsqueeze_to(share, z) * (found - along * slope)
    return Widened(found, pull, weight * variance * _product(slope, found) / 2)


def _solve(z: Tensor, slope: Tensor, near: Tensor, variance: Tensor, slope_at: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns $(I + v H)^{-1} g$ by conjugate gradients; the second and third are taken only if one row leaves more than a tenth."""
    tiny = torch.finfo(z.dtype).tiny
    found, rest, direction = torch.zeros_like(slope), slope, slope
    squares = first = _product(slope, slope)
    for number in range(_STEPS):
        length = _product(direction, direction)
        scale = unsqueeze_to((variance / length.clamp_min(tiny)).sqrt(), z)
        change = (slope - (slope_at(z - scale * direction) if number else near)) / scale
        bent = unsqueeze_to(variance, z) * torch.where((scale > 0) & change.isfinite(), change, 0.0)
        curvature = _product(direction, bent)
        bent = torch.where(unsqueeze_to(curvature > 0, z), bent, 0.0)
        step = unsqueeze_to(squares / (length + curvature.clamp_min(0)).clamp_min(tiny), z)
        found, rest = found + step * direction, rest - step * (direction + bent)
        before, squares = squares, _product(rest, rest)
        if bool((squares <= _TOLERANCE**2 * first).all()):
            break
        direction = rest + unsqueeze_to(squares / before.clamp_min(tiny), z) * direction
    return found


def _lengthen(near: Tensor, far: Tensor, variance: Tensor, step: Tensor, reach: Tensor) -> Tensor:
    r"""Returns by how much the solution along the gradient is longer than that of the first difference, where it lies beyond its end.

    Along $z - t g$, with gradients $s(t)$ in units of $g$, the solution is $s(t) = t / v$. Between the two points it follows their chord.

    Args:
        near: $s$ at the first point, with shape $(B,)$.
        far: $s$ at the second point.
        variance: $v$.
        step: $t$ of the first point.
        reach: $t$ of the second point.
    """
    chord = (near - far) / (reach - step)
    found = (near + chord * step) / (1 / variance + chord)
    straight = 1 / (1 / variance + (1 - near) / step)
    beyond = (near * variance > step) & (reach > step) & (chord > 0) & (straight > 0)
    return torch.where(beyond, found / straight, 1.0).nan_to_num(1.0).clamp(min=1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Returns the inner product of each pair of points, with shape $(B,)$."""
    return (left * right).reshape(len(left), -1).sum(1)
