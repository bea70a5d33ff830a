"""Checks that a sampler leaves a density invariant: exact draws remain exact draws after some steps.

There is no burn-in and chains are independent, so standard errors are exact and errors of a few hundredths are detected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from composable_energy.sampling.noise import Noise
from composable_energy.testing.targets import Banana

_CHAINS, _STEPS = 20_000, 20
_MOST_ERRORS = 4.5  # standard errors; a correct sampler exceeds it for one of the five moments in 1 of 30,000 seeds
_MOST_DISTANCE = 2.47  # Kolmogorov's distance times the square root of n; p = 1e-5


def assert_invariant(draw: Callable[..., Tensor], **options: Any) -> None:
    """Asserts that exact draws from `Banana` are exact draws after 20 steps.

    Args:
        draw: A function with the arguments of `sample`: an energy, a shape, `steps`, `init` and other options.
        **options: The other options.
    """
    target = Banana()
    start = target.exact(Noise(0, range(_CHAINS)).child("exact draws"))
    errors, distance = measure_deviations(target.whitened(draw(target, (_CHAINS, 2), init=start, steps=_STEPS, **options)))
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] < _MOST_ERRORS, (
        f"exact draws do not stay exact: after {_STEPS} steps the {worst} is {errors[worst]:.1f} standard errors off"
    )
    assert distance < _MOST_DISTANCE, f"exact draws do not stay exact: after {_STEPS} steps Kolmogorov and Smirnov give p < 1e-5"


def measure_deviations(white: Tensor) -> tuple[dict[str, float], float]:
    r"""Returns the deviations of points from a standard normal distribution.

    Args:
        white: Points, with shape $(n, 2)$.

    Returns:
        The deviations of five moments in standard errors, and the larger Kolmogorov distance of the two coordinates times $\sqrt n$,
        which is above 2.47 in 1 of 100,000 cases.
    """
    n = len(white)
    first, second = white.double().T
    moments = {
        "first mean": first.mean(),
        "second mean": second.mean(),
        "first variance": (first.square().mean() - 1) / math.sqrt(2),
        "second variance": (second.square().mean() - 1) / math.sqrt(2),
        "correlation": (first * second).mean(),
    }
    errors = {name: abs(float(value)) * math.sqrt(n) for name, value in moments.items()}
    below = torch.special.ndtr(white.double().sort(dim=0).values)
    steps = torch.arange(n, dtype=torch.float64)[:, None]
    distance = torch.maximum((steps + 1) / n - below, below - steps / n).max().item()
    return {name: error if math.isfinite(error) else math.inf for name, error in errors.items()}, distance * math.sqrt(n)
