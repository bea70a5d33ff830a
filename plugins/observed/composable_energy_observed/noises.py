r"""Noise models: the probability of a measurement $y$ given what the operator predicts, $\hat y = A x$."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.events import log_probability
from composable_energy.options import check_number
from composable_energy_observed.operators import Described, build


class Noise(Described):
    """Abstract noise model."""

    @abstractmethod
    def energies(self, predicted: Tensor, y: Tensor, variance: Tensor | None = None) -> Tensor:
        r"""Returns $-\log p(y_i \mid \hat y_i)$ of each number of a measurement, with the shape $(B, *)$ of the predictions.

        Args:
            variance: The variance of the predictions themselves, with shape $(B, 1, \dots)$, at a noise level; None if they are certain.
        """

    def check(self, y: Tensor) -> None:
        """Raises `OptionError` if a measurement is impossible under this model."""

    def level(self, y: Tensor, quantile: float) -> float | None:
        r"""Returns the quantile of $-\log p(y \mid \hat y)$ for $y$ drawn from the model; None if it depends on $\hat y$."""
        return None

    def __str__(self) -> str:
        shown = {key: f"tensor{tuple(one.shape)}" if isinstance(one, Tensor) else f"{one:g}" for key, one in self.config().items()}
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in shown.items())})"


class Gaussian(Noise):
    r"""$y = A x + \sigma \epsilon$, with energy $\lVert A x - y \rVert^2 / 2 \sigma^2 + m \log(\sigma \sqrt{2 \pi})$ of $m$ numbers.

    Args:
        scale: $\sigma > 0$: a number, or a tensor that broadcasts to the shape of a measurement.
    """

    name = "gaussian"
    scale: Tensor

    def __init__(self, scale: float | Tensor) -> None:
        super().__init__()
        if isinstance(scale, Tensor):
            if scale.is_complex() or not bool(((scale > 0) & scale.isfinite()).all()):
                raise OptionError(f"scale, the standard deviation of the noise, must be positive and finite, got {scale!r:.200}.")
            self.register_buffer("scale", scale.detach().clone() if scale.is_floating_point() else scale.float())
        else:
            self.register_buffer("scale", torch.tensor(check_number("scale, the standard deviation of the noise,", scale, above=0)))

    def energies(self, predicted: Tensor, y: Tensor, variance: Tensor | None = None) -> Tensor:
        scale = _widened(self.scale.to(predicted), variance)
        return ((predicted - y) / scale).square() / 2 + (scale.log() + math.log(2 * math.pi) / 2)

    def check(self, y: Tensor) -> None:
        try:
            self.scale.expand(y.shape)
        except RuntimeError:
            shapes = f"{tuple(self.scale.shape)}, and the measurement {tuple(y.shape)}"
            raise ShapeError(f"The scale of the noise has shape {shapes}.") from None

    def level(self, y: Tensor, quantile: float) -> float:
        """Returns the quantile; the sum of the squares has a chi-squared distribution."""
        return self.energies(y[None].double(), y.double()).sum().item() + _gamma_quantile(y.numel() / 2, quantile)


class Poisson(Noise):
    r"""Counts: $y \sim \mathrm{Poisson}(\lambda)$ with the rate $\lambda = g A x + b$; the energy is infinite where a rate is negative.

    Args:
        gain: $g > 0$, the counts for each unit of $A x$.
        background: $b \ge 0$, the counts without signal.
    """

    name = "poisson"

    def __init__(self, gain: float = 1.0, background: float = 0.0) -> None:
        super().__init__()
        self.gain = check_number("gain", gain, above=0)
        self.background = check_number("background", background, least=0)

    def energies(self, predicted: Tensor, y: Tensor, variance: Tensor | None = None) -> Tensor:
        rate = self.gain * predicted + self.background
        possible = (rate > 0) | ((rate == 0) & (y == 0))
        safe = torch.where(rate > 0, rate, 1.0)
        found = torch.where(rate > 0, safe - torch.special.xlogy(y, safe), rate) + torch.lgamma(y + 1)
        if variance is not None:  # a power of the probability where the rate is known well, else a Gaussian, as wide as both variances
            own, more = y.clamp(min=1.0), (self.gain**2 * variance).clamp(min=1e-12)
            power, gaussian = found * own / (own + more), (rate - y).square() / (2 * (own + more))
            wall = rate.clamp(max=0.0).square() * own / (2 * more * (own + more))  # below 0 as steep as the noise of the point alone
            return torch.where((rate > more.sqrt()) & (more < own), power, gaussian + wall)  # the slope of log(rate) has no end at 0
        return torch.where(possible | rate.isnan(), found, torch.inf)

    def check(self, y: Tensor) -> None:
        if bool((wrong := (y < 0) | (y != y.round())).any()):
            raise OptionError(
                f"Poisson noise is for counts, and {int(wrong.sum())} of {y.numel()} numbers are negative or no whole numbers, such as "
                f"{y[wrong][0]:g}. If y was scaled, give the counts themselves and `Poisson(gain=...)`."
            )


class Quantised(Noise):
    r"""Gaussian noise, then rounding to multiples of a step: $p(y \mid \hat y) = P(|\hat y + \sigma \epsilon - y| < \Delta / 2)$.

    Args:
        step: $\Delta > 0$, such as 1 / 255.
        scale: $\sigma > 0$, the noise before the rounding.
    """

    name = "quantised"

    def __init__(self, step: float, scale: float) -> None:
        super().__init__()
        self.step, self.scale = check_number("step", step, above=0), check_number("scale", scale, above=0)

    def energies(self, predicted: Tensor, y: Tensor, variance: Tensor | None = None) -> Tensor:
        y, scale = y.expand_as(predicted), _widened(torch.full_like(predicted, self.scale), variance)
        return -log_probability(predicted, scale, y - self.step / 2, y + self.step / 2)


NOISES: Mapping[str, type[Noise]] = {cls.name: cls for cls in (Gaussian, Poisson, Quantised)}


def noise_of(noise: Noise | float | Tensor | str | Mapping[str, Any] | None) -> Noise:
    """Returns a noise model: itself, the Gaussian of a standard deviation, or that of a name or a mapping with `name` and options.

    Raises:
        OptionError: It is none of these, or a name or option is unknown, missing or out of range.
    """
    if isinstance(noise, Noise):
        return noise
    if noise is None:
        raise OptionError("An observation needs its noise: a standard deviation such as noise=0.05, or 'poisson' for counts.")
    if isinstance(noise, Tensor) or (isinstance(noise, Real) and not isinstance(noise, bool)):
        return Gaussian(noise)  # pyright: ignore[reportArgumentType]
    if not isinstance(noise, str | Mapping):
        raise OptionError(f"noise is a standard deviation, a `Noise`, or the name of one, got {noise!r}.")
    return build("noise", NOISES, noise)


def _widened(scale: Tensor, variance: Tensor | None) -> Tensor:
    return scale if variance is None else (scale.square() + variance).sqrt()


def _gamma_quantile(shape: float, quantile: float) -> float:
    """Returns the quantile of a gamma distribution of unit rate, by bisection."""
    low, high = 0.0, shape + 40 * math.sqrt(shape) + 40
    a = torch.tensor(shape, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        below = torch.special.gammainc(a, torch.tensor(middle, dtype=torch.float64)).item() < quantile
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2
