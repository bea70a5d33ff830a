r"""Estimates of $\log Z$ from log weights of annealed importance sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_RESAMPLES = 200
_BISECTIONS = 60
_MARGIN = 30.0


def log_mean(log_weights: Tensor) -> Tensor:
    """Returns the logarithm of the mean of weights along the last axis."""
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])


def bennett_acceptance_ratio(forward: Tensor, reverse: Tensor) -> Tensor:
    r"""Estimates $c = \log Z_1 - \log Z_0$ from the log weights of paths in both directions, by Bennett's acceptance ratio.

    It solves $\sum_i \sigma(f_i - c - m) = \sum_j \sigma(r_j + c + m)$ with the logistic function $\sigma$ and $m = \log(n_f / n_r)$.

    Args:
        forward: $f$, with shape $(*, n_f)$: log weights of paths from draws of $p_0$, whose weights have the mean $Z_1 / Z_0$.
        reverse: $r$, with shape $(*, n_r)$: log weights of paths from draws of $p_1$, whose weights have the mean $Z_0 / Z_1$.

    Returns:
        The estimates, with the shape of the leading axes.

    References:
        Efficient estimation of free energy differences from Monte Carlo data (Bennett, 1976), https://doi.org/10.1016/0021-9991(76)90078-4
    """
    shift = math.log(forward.shape[-1] / reverse.shape[-1])
    both = torch.cat([forward, -reverse], -1)  # a path of weight 0 counts, but bounds nothing
    low = both.where(both.isfinite(), torch.inf).amin(-1) - abs(shift) - _MARGIN
    high = both.where(both.isfinite(), -torch.inf).amax(-1) + abs(shift) + _MARGIN
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        at = middle[..., None] + shift
        too_low = torch.sigmoid(forward - at).sum(-1) > torch.sigmoid(reverse + at).sum(-1)
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return (low + high) / 2


def bootstrap_error(forward: Tensor, reverse: Tensor | None, seed: int) -> float:
    """Returns the standard error of the estimate, by its standard deviation over resampled paths.

    Args:
        forward: Log weights, with shape $(n_f,)$.
        reverse: Log weights, with shape $(n_r,)$; None for an estimate from forward paths alone.
        seed: The seed of the resampling.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)

    def resample(weights: Tensor) -> Tensor:
        return weights[torch.randint(len(weights), (_RESAMPLES, len(weights)), generator=generator)]

    values = log_mean(resample(forward)) if reverse is None else bennett_acceptance_ratio(resample(forward), resample(reverse))
    return values.std().item()
