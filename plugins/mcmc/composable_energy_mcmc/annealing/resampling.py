"""Weighted points: how many equal ones they are worth, and resampling."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_sample_size(log_weights: Tensor) -> float:
    r"""Returns $(\sum_i w_i)^2 / \sum_i w_i^2$ of weights with shape $(B,)$; 0 if all of them are 0."""
    if log_weights.max() == -torch.inf:
        return 0.0
    return 1 / torch.softmax(log_weights, 0).square().sum().item()


def systematic_resample(log_weights: Tensor, offset: Tensor) -> Tensor:
    r"""Draws rows by their weights at evenly spaced quantiles: row $i$ of $B$ is drawn $B w_i / \sum_j w_j$ times, up to rounding.

    Args:
        log_weights: With shape $(B,)$.
        offset: A uniform number in (0, 1).

    Returns:
        The indices of the rows, in rising order, with shape $(B,)$.
    """
    cumulative = torch.softmax(log_weights.double(), 0).cumsum(0)
    quantiles = (torch.arange(len(cumulative), device=cumulative.device) + offset.double()) / len(cumulative) * cumulative[-1]
    return torch.searchsorted(cumulative, quantiles).clamp_(max=len(cumulative) - 1)
