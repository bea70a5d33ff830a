"""Effective sample sizes of several chains, by Geyer's monotone pairs as in Stan."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def effective(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the effective sample sizes and the variances of k numbers, each with shape $(k,)$."""
    n, chains, _ = draws.shape
    means = draws.mean(0)
    spectrum = torch.fft.rfft(draws - means, 1 << (2 * n - 1).bit_length(), dim=0)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), dim=0)[:n].mean(1) / n
    within, total = covariance[0] * n / (n - 1), covariance[0] + means.var(0)
    correlation = 1 - (within - covariance) / total
    correlation[0] = 1.0
    pairs = correlation[: n // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    pairs = torch.where((pairs < 0).cumsum(0) > 0, 0.0, pairs).cummin(0).values  # Geyer's: positive and falling
    steps = (2 * pairs.sum(0) - 1).clamp_min(1 / math.log10(chains * n))
    return chains * n / steps, total


def least_effective(points: np.ndarray) -> float:
    """Returns the least effective sample size over coordinates, and over $x$ and its squared distance from the mean."""
    x = torch.from_numpy(points.astype(np.float64)).transpose(0, 1)
    squares = (x - x.mean((0, 1))).square()
    return min(float(effective(values)[0].min()) for values in (x, squares))
