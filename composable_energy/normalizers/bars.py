r"""Estimators: what the weights of paths say of $\log Z$."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["bar", "bootstrap", "effective", "log_mean"]

_RESAMPLES = 200
_HALVINGS = 60
_MARGIN = 30.0


def log_mean(log_weights: Tensor) -> Tensor:
    """Returns the logarithm of the mean of weights along the last axis."""
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])


def effective(log_weights: Tensor) -> float:
    """Returns the effective sample size of weights, as a share of their number; 0 if all of them are 0."""
    if log_weights.max() == -torch.inf:
        return 0.0
    weights = torch.softmax(log_weights, -1)
    return (1 / weights.square().sum() / len(weights)).item()


def bar(forward: Tensor, reverse: Tensor) -> Tensor:
    r"""Bennett's acceptance ratio: the $c = \log Z_1 - \log Z_0$ that the log weights of paths in both directions agree on.

    It solves $\sum_i \sigma(f_i - c - m) = \sum_j \sigma(r_j + c + m)$ with the logistic function $\sigma$ and $m = \log(n_f / n_r)$.

    Args:
        forward: $f$, with shape $(*, n_f)$: log weights of paths from draws of $p_0$, whose weights have the mean $Z_1 / Z_0$.
        reverse: $r$, with shape $(*, n_r)$: those of paths from draws of $p_1$, whose weights have the mean $Z_0 / Z_1$.

    Returns:
        With the shape of the leading axes.

    References:
        Efficient estimation of free energy differences from Monte Carlo data (Bennett, 1976), https://doi.org/10.1016/0021-9991(76)90078-4
    """
    shift = math.log(forward.shape[-1] / reverse.shape[-1])
    both = torch.cat([forward, -reverse], -1)  # a path of weight 0 counts, but bounds nothing
    low = both.where(both.isfinite(), torch.inf).amin(-1) - abs(shift) - _MARGIN
    high = both.where(both.isfinite(), -torch.inf).amax(-1) + abs(shift) + _MARGIN
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        at = middle[..., None] + shift
        rising = torch.sigmoid(forward - at).sum(-1) > torch.sigmoid(reverse + at).sum(-1)
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    return (low + high) / 2


def bootstrap(forward: Tensor, reverse: Tensor | None, seed: int) -> float:
    """Returns the standard deviation of the estimate over resampled paths.

    Args:
        forward: Log weights, with shape $(n_f,)$.
        reverse: Log weights, with shape $(n_r,)$; None for an estimate by forward paths alone.
        seed: Of the resampling.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)

    def again(weights: Tensor) -> Tensor:
        return weights[torch.randint(len(weights), (_RESAMPLES, len(weights)), generator=generator)]

    values = log_mean(again(forward)) if reverse is None else bar(again(forward), again(reverse))
    return values.std().item()
