"""Effective sample sizes."""

from __future__ import annotations

import numpy as np

__all__ = ["effective", "least_effective"]


def effective(draws: np.ndarray) -> float:
    """The effective sample size of one number, with shape (chains, draws): Geyer's monotone pairs, as in Stan."""
    chains, n = draws.shape
    means = draws.mean(1, keepdims=True)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(draws - means, size, axis=1)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), size, axis=1)[:, :n].mean(0) / n
    within = covariance[0] * n / (n - 1)
    correlation = 1 - (within - covariance) / (covariance[0] + means.var(ddof=1))
    correlation[0] = 1
    pairs = correlation[: n // 2 * 2].reshape(-1, 2).sum(1)
    last = int(np.argmax(pairs < 0)) if (pairs < 0).any() else len(pairs)
    time_between = 2 * np.minimum.accumulate(pairs[: max(last, 1)]).sum() - 1
    return chains * n / max(time_between, 1 / np.log10(chains * n))


def least_effective(points: np.ndarray) -> float:
    """The least over coordinates, and over x and its squared distance from the mean; points have the shape (chains, draws, d)."""
    x = points.astype(np.float64)
    squares = (x - x.mean((0, 1))) ** 2
    return min(effective(values[..., axis]) for values in (x, squares) for axis in range(x.shape[-1]))
