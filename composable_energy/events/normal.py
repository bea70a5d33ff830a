r"""Sums and Gaussian intervals in log space.

$\log(\Phi(b) - \Phi(a))$ is accurate in both tails. Far from the mean the two terms differ by less than their rounding, and in `float32`
their logarithms reach $-10^{12}$. So tails are computed with the scaled complementary error function, $\Phi(-t) =
e^{-t^2/2}\, \mathrm{erfcx}(t / \sqrt2) / 2$, and the ratio of two tails from the *width* of the interval, without cancellation.

Source: W. J. Cody, "Rational Chebyshev approximations for the error function" (1969), for `erfcx` and its use in tails.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_probability(mean: Tensor, width: Tensor, low: Tensor | float | None, high: Tensor | float | None) -> Tensor:
    r"""Returns $\log P(\text{low} < v < \text{high})$ for $v \sim \mathcal N(\text{mean}, \text{width}^2)$, with shape $(B,)$.

    Values and gradients are finite if mean, ends, and the squared distances in widths are finite.

    Args:
        mean: The means, with shape $(B,)$.
        width: The standard deviations, with shape $(B,)$.
        low: The lower end, a number or one for each row; None for $-\infty$.
        high: The upper end, a number or one for each row; None for $\infty$.
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

    # The mean is inside: a sum of two positive parts. Elsewhere safe values replace the input, so that no gradient is NaN.
    left, right = torch.where(astride, -a, 1.0), torch.where(astride, b, 1.0)
    inside = ((torch.erf(left * math.sqrt(0.5)) + torch.erf(right * math.sqrt(0.5))) / 2).clamp(min=smallest).log()

    # The mean is outside: the tail beyond the near end minus the tail beyond the far end, with ratio exp(-gap).
    near = torch.where(above, a, torch.where(below, -b, 0.0))
    far = near + span
    gap = span * (near + far) / 2 + _log_scaled_tail(near) - _log_scaled_tail(far)
    gap = torch.maximum(gap, span * math.sqrt(2 / math.pi))  # the smallest hazard rate; the difference may round to 0
    outside = -near.square() / 2 + _log_scaled_tail(near) + (-torch.expm1(-gap)).log()
    return torch.where(astride, inside, outside)


def log_sum(logs: Tensor, axis: int) -> Tensor:
    r"""Returns $\log \sum e^{\text{logs}}$ along an axis.

    Its gradients, the shares, sum to 1 for numbers of any size; those of `torch.logsumexp` are computed from its rounded result and are
    off by .0005 at $10^4$ in `float32`.
    """
    largest = logs.amax(axis, keepdim=True).detach()
    return (logs - largest).exp().sum(axis).log() + largest.squeeze(axis)


def _log_tail(t: Tensor) -> Tensor:
    r"""Returns $\log \Phi(-t)$; the gradients of `torch.special.log_ndtr` are infinite in the far tail in `float32`."""
    right = t > 0
    out, back = torch.where(right, t, 0.0), torch.where(right, 0.0, -t)
    return torch.where(right, -out.square() / 2 + _log_scaled_tail(out), torch.log1p(-torch.erfc(back * math.sqrt(0.5)) / 2))


def _log_scaled_tail(t: Tensor) -> Tensor:
    r"""Returns $\log \Phi(-t) + t^2 / 2$ for $t \ge 0$."""
    return (torch.special.erfcx(t * math.sqrt(0.5)) / 2).log()
