r"""Sums and Gaussian intervals in log space.

$\log(\Phi(b) - \Phi(a))$ with both tails right: far from the mean the two terms differ by less than their rounding, and in `float32`
their logarithms reach $-10^{12}$. So the tail is written with the scaled complement of the error function, $\Phi(-t) =
e^{-t^2/2}\, \mathrm{erfcx}(t / \sqrt2) / 2$, and the ratio of two tails from the *width* of the interval, which never cancels.

Source: W. J. Cody, "Rational Chebyshev approximations for the error function" (1969), for `erfcx` and its use in tails.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["log_probability", "log_sum"]


def log_probability(mean: Tensor, width: Tensor, low: Tensor | float | None, high: Tensor | float | None) -> Tensor:
    r"""Returns $\log P(\text{low} < v < \text{high})$ for $v \sim \mathcal N(\text{mean}, \text{width}^2)$, with shape $(B,)$.

    Finite with finite gradients for every finite mean and end and every positive width whose squared distance in widths is finite.

    Args:
        mean: With shape $(B,)$.
        width: Standard deviations, with shape $(B,)$.
        low: A number or one for each row; None is $-\infty$.
        high: A number or one for each row; None is $\infty$.
    """
    if low is None:
        return torch.zeros_like(mean) if high is None else _log_tail((mean - high) / width)
    if high is None:
        return _log_tail((low - mean) / width)
    a, b = (low - mean) / width, (high - mean) / width
    smallest = torch.finfo(mean.dtype).tiny ** 0.5
    span = ((high - low) / width).clamp(min=smallest)  # not b - a, which is 0 where both round to the same number
    above, below = a >= 0, b <= 0
    astride = ~(above | below)

    # The mean is inside: a sum of two positive parts. Elsewhere harmless numbers stand in, so that no gradient is NaN.
    left, right = torch.where(astride, -a, 1.0), torch.where(astride, b, 1.0)
    inside = ((torch.erf(left * math.sqrt(0.5)) + torch.erf(right * math.sqrt(0.5))) / 2).clamp(min=smallest).log()

    # The mean is outside: the tail from the near end on, less the tail from the far end on, which is exp(-gap) of it.
    near = torch.where(above, a, torch.where(below, -b, 0.0))
    far = near + span
    gap = span * (near + far) / 2 + _log_scaled_tail(near) - _log_scaled_tail(far)
    gap = torch.maximum(gap, span * math.sqrt(2 / math.pi))  # the hazard is nowhere less; of use where the difference rounds to 0
    outside = -near.square() / 2 + _log_scaled_tail(near) + (-torch.expm1(-gap)).log()
    return torch.where(astride, inside, outside)


def log_sum(logs: Tensor, axis: int) -> Tensor:
    r"""Returns $\log \sum e^{\text{logs}}$ along an axis.

    Its gradients, the shares, sum to 1 whatever the size of the numbers; those of `torch.logsumexp` come from its rounded result and
    are off by .0005 at $10^4$ in `float32`.
    """
    largest = logs.amax(axis, keepdim=True).detach()
    return (logs - largest).exp().sum(axis).log() + largest.squeeze(axis)


def _log_tail(t: Tensor) -> Tensor:
    r"""Returns $\log \Phi(-t)$. `torch.special.log_ndtr` has the same values, but infinite gradients far out in `float32`."""
    right = t > 0
    out, back = torch.where(right, t, 0.0), torch.where(right, 0.0, -t)
    return torch.where(right, -out.square() / 2 + _log_scaled_tail(out), torch.log1p(-torch.erfc(back * math.sqrt(0.5)) / 2))


def _log_scaled_tail(t: Tensor) -> Tensor:
    r"""Returns $\log \Phi(-t) + t^2 / 2$ for $t \ge 0$."""
    return (torch.special.erfcx(t * math.sqrt(0.5)) / 2).log()
