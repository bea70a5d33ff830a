"""Terms without noise levels at a noise level, for data that vary around a denoised point: precise terms pull less there."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to

_STEPS, _TOLERANCE = 3, 0.1
_REACH, _FLAT, _RISING = 4.0, 0.1, 0.3
_PRECISE = 30.0
_FARTHEST, _LEAST = 2.0, 1e-8


class Widened(NamedTuple):
    """The gradient of terms without noise levels, for data that vary around the denoised points."""

    slope: Tensor  # (I + v H)^-1 g, with shape (B, *)
    pull: Tensor  # C (I + v H)^-1 g, with the same shape
    rise: Tensor  # how much higher the log density is than at the denoised point, v g^T (I + v H)^-1 g / 2, with shape (B,)


def widen(
    z: Tensor, slope: Tensor, pulled: Tensor, sigma: float, slope_at: Callable[[Tensor], Tensor], *, together: bool = False
) -> Widened:
    r"""Widens terms by the variance of the data around denoised points along the gradient, $v = \sigma^2\, g^\top C g / g^\top g$.

    For a quadratic energy the result is the gradient of $-\log \mathbb E\, e^{-E(z + \sqrt v\, \xi)}$ with standard normal $\xi$, by at
    most three conjugate gradients. Products with its second derivative $H$ are differences over the length $\sqrt v$ downhill. So an
    energy with a kink or a plateau counts with its mean curvature where the data may be. A negative curvature counts as a positive one.

    An energy that levels off downhill, as the evidence of a classifier, is not widened. Such evidence chooses among modes of the data, and
    the choice follows it more than a Gaussian does. Widened are energies that rise again farther downhill, where data alone would
    not go, and those whose curvature is above thirty times that of the data alone; in between, in part. What is still too long, since an
    energy is far from quadratic, is cut: the mean of the data moves by two standard deviations of each coordinate at most. For chains that
    are weighed against each other, `together`, the points decide by their median how much is widened, and nothing is cut.

    `slope` is $g$ at the denoised points $z$, and `pulled` is $C g$, as `denoised_pull` returns it, each with shape $(B, *)$.
    """
    tiny = torch.finfo(z.dtype).tiny
    squares = _product(slope, slope).clamp_min(tiny)
    share = (_product(slope, pulled) / squares).clamp(min=0)
    variance, known = sigma**2 * share.clamp(max=1), (1 - share).clamp_min(0.01)
    near = slope_at(z - unsqueeze_to((variance / squares).sqrt(), z) * slope)
    found, kept = _downhill(slope, _solve(z, slope, near, variance, slope_at), squares)
    precision = (1 / kept - 1) / known  # in units of the variance of the data alone, v / known
    reach = _REACH * variance / known / (1 + precision)
    far = _product(slope, slope_at(z - unsqueeze_to(reach, z) * slope)) / squares
    kept = kept * _lengthen(_product(slope, near) / squares, far, variance, (variance / squares).sqrt(), reach)
    rising = (-far - _FLAT) / (_RISING - _FLAT)
    weight = torch.maximum(rising.nan_to_num(0.0).clamp(0, 1), 1 / (1 + (_PRECISE / precision.clamp_min(tiny)) ** 4))
    weight = weight.median().expand_as(weight) if together else weight
    kept = 1 / (1 + weight * (1 / kept - 1))
    longest = _FARTHEST * (z[0].numel() / (variance * known.clamp_min(0.1)).clamp_min(tiny)).sqrt()  # the mean of the data moves v times it
    along = kept if together else torch.minimum(kept, longest / _product(found, found).sqrt().clamp_min(tiny))
    found = unsqueeze_to(along, z) * found
    pull = unsqueeze_to(along, z) * pulled + unsqueeze_to(share, z) * (found - unsqueeze_to(along, z) * slope)
    return Widened(found, pull, weight * along * variance * squares / 2)


def _downhill(slope: Tensor, found: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns a solution whose component along $g$ is $g$, and that component's share of $g$; $g$ itself if a solution points uphill."""
    kept = _product(slope, found) / squares
    good = kept > _LEAST
    kept = kept.clamp(_LEAST, 1)
    return torch.where(unsqueeze_to(good, slope), found / unsqueeze_to(kept, slope), slope), kept


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
        bent = bent * unsqueeze_to(curvature.sign(), z)
        step = unsqueeze_to(squares / (length + curvature.abs()).clamp_min(tiny), z)
        found, rest = found + step * direction, rest - step * (direction + bent)
        before, squares = squares, _product(rest, rest)
        if bool((squares <= _TOLERANCE**2 * first).all()):
            break
        direction = rest + unsqueeze_to(squares / before.clamp_min(tiny), z) * direction
    return found


def _lengthen(near: Tensor, far: Tensor, variance: Tensor, step: Tensor, reach: Tensor) -> Tensor:
    r"""Returns by how much the solution along the gradient is longer than that of the first difference, where it lies beyond its end.

    Along $z - t g$, with gradients $s(t)$ in units of $g$, the solution is $s(t) = t / v$. Between the two points it follows their chord.
    """
    chord = (near - far) / (reach - step)
    found = (near + chord * step) / (1 / variance + chord)
    straight = 1 / (1 / variance + (1 - near) / step)
    beyond = (near * variance > step) & (reach > step) & (chord > 0) & (straight > 0)
    return torch.where(beyond, found / straight, 1.0).nan_to_num(1.0).clamp(min=1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Returns the inner product of each pair of points, with shape $(B,)$."""
    return (left * right).reshape(len(left), -1).sum(1)
