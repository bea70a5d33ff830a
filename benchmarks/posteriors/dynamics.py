"""Lotka-Volterra: two populations, integrated by 40 steps of Runge-Kutta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.posteriors.target import Target, log_normal

# Medians of the priors of birth, predation, death, growth and both first populations, and their sds in the logarithm.
CENTER, SPREAD = (0.6, 0.03, 0.8, 0.025, 25.0, 8.0), (0.4, 0.4, 0.4, 0.4, 0.5, 0.5)
LOG_NOISE = (-1.5, 0.5)
_TRUE = (0.55, 0.028, 0.84, 0.026, 30.0, 5.0)
SPAN, STEPS, BETWEEN = 12.0, 40, 4  # of time, of the integrator, and between two observations


def runge_kutta(rates: Callable[[Any], Any], y: Any) -> list[Any]:
    """Returns the state at ten times; the classical method with a fixed step, on any kind of array."""
    h, kept = SPAN / STEPS, []
    for step in range(1, STEPS + 1):
        a = rates(y)
        b = rates(y + h / 2 * a)
        c = rates(y + h / 2 * b)
        d = rates(y + h * c)
        y = y + h / 6 * (a + 2 * (b + c) + d)
        if step % BETWEEN == 0:
            kept.append(y)
    return kept


def populations() -> np.ndarray:
    """Returns logarithms of both populations at ten times, with noise of sd .2, and shape (10, 2)."""
    birth, predation, death, growth, prey, predators = _TRUE
    constant, factor = np.array([birth, -death]), np.array([-predation, growth])
    path = runge_kutta(lambda y: constant + factor * np.exp(y[::-1]), np.log([prey, predators]))
    return np.array(path) + 0.2 * np.random.RandomState(7).randn(10, 2)


def lotka_volterra() -> Target:
    """The coordinates are standardised logarithms: normal a priori. The last is that of the noise of the log populations."""
    observed = torch.from_numpy(populations())
    center, spread = torch.tensor(CENTER, dtype=torch.float64).log(), torch.tensor(SPREAD, dtype=torch.float64)

    def parameters(x: Tensor) -> Tensor:
        return torch.cat([center.to(x) + spread.to(x) * x[:, :6], LOG_NOISE[0] + LOG_NOISE[1] * x[:, 6:]], 1).exp()

    def log_density(x: Tensor) -> Tensor:
        birth, predation, death, growth, prey, predators, noise = parameters(x).unbind(1)
        constant, factor = torch.stack([birth, -death], 1), torch.stack([-predation, growth], 1)
        first = torch.stack([prey, predators], 1).log()
        path = runge_kutta(lambda y: torch.addcmul(constant, factor, y.flip(1).exp()), first)
        residuals = (observed.to(x) - torch.stack(path, 1)).square().sum((1, 2))
        return log_normal(x).sum(1) - residuals / (2 * noise.square()) - observed.numel() * noise.log()

    names = ("birth", "predation", "death", "growth", "prey", "predators", "noise")
    return Target("lotka-volterra", "Lotka-Volterra", 7, log_density, names, parameters)
