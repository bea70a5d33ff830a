r"""Levels of energies: the quantile $L_q$ of the evidence of A at draws of A, and its estimate from pilot draws.

The points with $E_A(x) \le L_q$ are where a share $q$ of the draws of A lies. A constant in $E_A$ moves $L_q$ alike, so the region does not
depend on it.
"""

from __future__ import annotations

import contextvars
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from composable_energy.conditions import CHAINS
from composable_energy.distributions import DistributionEnergy, seeded_draws
from composable_energy.energy import Energy
from composable_energy.errors import ComposableEnergyError, ExpressionError, LevelWarning, OptionError
from composable_energy.estimate import Estimate
from composable_energy.twins import tensors_of, twin

T = TypeVar("T")

_SEED = 0
_EXACT_DRAWS, _DRAWS, _DRAWS_OF_LARGE_POINTS, _LARGE = 65_536, 4096, 512, 256
_NUMBERS = 2**24  # of all exact draws together
_KEPT = 16
_ROUNDING = 1e-3
_DRIFT = 5.0  # standard errors between the level at three quarters of the run and at its end


@dataclass(frozen=True, eq=False)
class LevelEstimate(Estimate):
    """An estimated level, with some draws that show later whether the energy has changed.

    The draws are arrays, because they are no tensors of the energy: they stay when it is moved or converted.

    Attributes:
        points: Draws of the energy, with shape $(k, *)$.
        evidence: Their evidence, with shape $(k,)$.
    """

    points: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    evidence: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LevelEstimate:
        """Returns the estimate that `config` describes.

        Raises:
            OptionError: A part is missing or of another type.
        """
        try:
            points, evidence = (torch.as_tensor(config[name]).detach().double().cpu().numpy() for name in ("points", "evidence"))
            return cls(float(config["value"]), float(config["standard_error"]), points, evidence)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise OptionError(f"estimate is not that of a `config()`: {error}.") from error

    def config(self) -> dict[str, Any]:
        """Returns the estimate as numbers and tensors."""
        draws = {"points": torch.from_numpy(self.points), "evidence": torch.from_numpy(self.evidence)}
        return {"value": self.value, "standard_error": self.standard_error, **draws}


class Level:
    r"""The level of one energy, estimated at its first use; an expression and its twins share it.

    Args:
        quantile: $q$.
        temperature: $\tau$.
        estimate: An earlier estimate.
    """

    def __init__(self, quantile: float, temperature: float, estimate: LevelEstimate | None = None) -> None:
        self.quantile = quantile
        self.temperature = temperature
        self.estimate = estimate
        self._versions: tuple[tuple[Tensor, ...], tuple[int, ...]] | None = None

    def value(self, energy: Energy, x: Tensor, *, fixed: bool) -> float:
        """Returns the level of an energy, estimated now if there is no estimate or the energy has changed since.

        Args:
            energy: The energy A.
            x: Points with shape $(B, *)$, which give the shape, dtype and device of draws.
            fixed: Whether the energy is known not to have changed.

        Raises:
            ExpressionError: A cannot be sampled.
        """
        if self.estimate is None or not (fixed or self._is_current(energy, x)):
            if torch.compiler.is_compiling():
                raise ExpressionError(f"The level of {energy} is not estimated yet: evaluate the expression once before compiling it.")
            self.estimate = _outside_of_evaluations(lambda: _estimate(energy, self.quantile, self.temperature, x))
            self._versions = _versions(energy)
        return self.estimate.value

    def _is_current(self, energy: Energy, x: Tensor) -> bool:
        """Returns whether an energy is the one of the estimate, up to the standard error of the level."""
        if torch.compiler.is_compiling():
            return True
        if self._versions is not None and self._versions[1] == _count_writes(self._versions[0]):
            return True
        estimate = self.estimate
        if estimate is None or estimate.points.shape[1:] != x.shape[1:]:
            return False
        now = _outside_of_evaluations(lambda: twin(energy).evidence(torch.from_numpy(estimate.points).to(x)).double().cpu())
        change = (now - torch.from_numpy(estimate.evidence)).abs().mean().item()
        if change <= max(estimate.standard_error, _ROUNDING * (1 + abs(estimate.value))):
            self._versions = _versions(energy)
            return True
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_versions": None}


def _versions(energy: Energy) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    tensors = tuple(tensors_of(energy))
    return tensors, _count_writes(tensors)


def _count_writes(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


def _outside_of_evaluations(compute: Callable[[], T]) -> T:
    """Returns a result, computed without touching the memo, the gradients and the number of threads of the current evaluation."""
    threads = torch.get_num_threads()
    try:
        with torch.inference_mode(False), torch.no_grad():
            return contextvars.Context().run(compute)
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _estimate(energy: Energy, quantile: float, temperature: float, x: Tensor) -> LevelEstimate:
    _check_conditions(energy)
    try:
        points, evidence, drift = _draw(energy, quantile, x)
    except (ComposableEnergyError, RuntimeError) as error:
        raise _refusal(energy, f"{type(error).__name__}: {error}") from error
    if not evidence.isfinite().all():
        raise _refusal(energy, f"{int((~evidence.isfinite()).sum())} of {len(evidence)} draws have no finite energy")
    if drift is not None and abs(drift.value) > _DRIFT * max(drift.standard_error, 1e-12):
        warnings.warn(
            f"The {quantile:.0%} quantile of {energy} moved by {drift.value:.3g} in the last quarter of the pilot run, with a standard "
            f"error of {drift.standard_error:.2g}: the run may not have converged. Give the level: `negate(A, mode='level', level=...)`.",
            LevelWarning,
            stacklevel=2,
        )
    found = _find_quantile(evidence, quantile)
    level = _raise_for_flat(evidence.double(), found.value, quantile, temperature)
    return LevelEstimate(level, found.standard_error, *(values[:_KEPT].double().cpu().numpy() for values in (points, evidence)))


def _find_quantile(values: Tensor, quantile: float) -> Estimate:
    """Returns a quantile of independent numbers with its standard error."""
    ordered, count = values.double().sort().values, len(values)
    # The ranks of a quantile are binomial, so the order statistics one deviation apart give its standard error.
    rank, deviation = quantile * count, math.sqrt(count * quantile * (1 - quantile))
    low, middle, high = (ordered[min(max(math.ceil(r) - 1, 0), count - 1)].item() for r in (rank - deviation, rank, rank + deviation))
    return Estimate(middle, (high - low) / 2)


def _raise_for_flat(evidence: Tensor, level: float, quantile: float, temperature: float) -> float:
    """Returns the level, raised until the complement excludes the draws themselves, up to a share of $2 (1 - q)$.

    The energies of a flat density, such as a uniform one, are hardly below their quantile, so the border must lie above them.
    """
    low, high, share = level, level, min(2 * (1 - quantile), 1 - quantile / 2)
    for _ in range(60):
        if torch.sigmoid((evidence - high) / temperature).mean() <= share:
            break
        low, high = high, high + temperature
    for _ in range(30 if high > level else 0):
        middle = (low + high) / 2
        passes = bool(torch.sigmoid((evidence - middle) / temperature).mean() <= share)
        low, high = (low, middle) if passes else (middle, high)
    return high


def _draw(energy: Energy, quantile: float, x: Tensor) -> tuple[Tensor, Tensor, Estimate | None]:
    """Returns draws, their evidence, and how far the quantile of energies moved in the last quarter of the run, if that is known."""
    shape = x.shape[1:]
    if isinstance(energy, DistributionEnergy):
        draws = max(_KEPT, min(_EXACT_DRAWS, _NUMBERS // max(1, shape.numel())))
        points = seeded_draws(energy.distribution, draws, x.device, _SEED)
        if points is not None and points.shape[1:] == shape:
            points = points.to(x)
            return points, twin(energy).evidence(points), None
    count = _DRAWS if shape.numel() <= _LARGE else _DRAWS_OF_LARGE_POINTS
    points, trace = energy.sample((count, *shape), seed=_SEED, latents=True, trace=True, dtype=x.dtype, device=x.device)
    drift = None
    if trace.sampler.stationary and energy.has_value and len(trace.energies) >= 4:
        before, after = (_find_quantile(trace.energies[i], quantile) for i in (3 * len(trace.energies) // 4, -1))
        drift = Estimate(after.value - before.value, math.hypot(before.standard_error, after.standard_error))
    return points, twin(energy).evidence(points), drift


def _check_conditions(energy: Energy) -> None:
    free = sorted(energy.required_conditions - {CHAINS})
    if free:
        raise _refusal(energy, f"it depends on {', '.join(free)}: bind it first, as in `~A.given({free[0]}=...)`")
    for part in energy.modules():
        values: Mapping[str, Any] = getattr(part, "values", {}) if isinstance(part, Energy) else {}
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and len(value) > 1:
                raise _refusal(energy, f"it has {len(value)} rows of {name}, each with a level of its own: bind one value for all")


def _refusal(energy: Energy, reason: str) -> ExpressionError:
    return ExpressionError(
        f"~ of {energy} is the complement of where its draws are, and it cannot be sampled ({reason}). Give the level by "
        "`negate(A, mode='level', level=...)`; or take another mode of `negate`: 'power' (-0.01 E, the paper's rule, unbounded), "
        "'contrast' for `A.relative_to(base)`, or 'complement' for an event."
    )
