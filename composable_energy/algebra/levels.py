"""Levels of negations from draws: the expression in which they are filled."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.algebra.negation import Negation, exact_level, level_of_draws, quantile_of
from composable_energy.algebra.transformed import Conditioned, PulledBack
from composable_energy.arithmetic import Estimate
from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.energy import Energy
from composable_energy.energies.twins import contents, twin
from composable_energy.errors import CalibrationError, ComposableEnergyError, ContradictionError, LevelWarning, warn_caller

_SEED = 0
_DRAWS, _DRAWS_OF_LARGE_POINTS, _LARGE = 4096, 512, 256
_DRIFT = 5.0  # standard errors between the level at three quarters of the run and at its end


def lacks_level(module: nn.Module) -> bool:
    """Returns whether a negation inside of a module has a level that is not known yet."""
    return any(isinstance(part, Negation) and part.mode == "level" and part.level is None for part in module.modules())


def with_levels(energy: Energy, x: Tensor) -> Energy:
    """Returns an expression with the levels that are not known yet; parts without them, and all weights, are shared.

    Args:
        energy: The expression; it stays as it is.
        x: A point with shape $(1, *)$, which gives the shape, dtype and device of draws.

    Raises:
        CalibrationError: The operand of a negation cannot be sampled.
    """
    if not lacks_level(energy):
        return energy
    shared = (item for item in contents(energy) if isinstance(item, Tensor) or (isinstance(item, nn.Module) and not lacks_level(item)))
    filled = copy.deepcopy(energy, {id(item): item for item in shared})
    fill_levels(filled, x)
    return filled


def fill_levels(energy: Energy, x: Tensor, binds: frozenset[str] = frozenset()) -> None:
    """Sets the levels that are not known yet in an expression, such as a twin; see `with_levels`.

    Args:
        energy: The expression.
        x: A point with shape $(1, *)$, which gives the shape, dtype and device of draws.
        binds: Conditions that are bound around the expression, such as a noise level.

    Raises:
        CalibrationError: The operand of a negation cannot be sampled.
    """
    if not lacks_level(energy):
        return
    inside = binds
    if isinstance(energy, PulledBack):  # its term takes decoded points, and no noise level
        with torch.no_grad():
            x, inside = energy.generator(x), binds - {"sigma"}
    elif isinstance(energy, Conditioned):
        inside = binds | frozenset(energy.values)
    for part in dict.fromkeys((*energy.terms, *(base.energy for base in energy.bases))):
        fill_levels(part, x, inside)
    if isinstance(energy, Negation) and energy.mode == "level" and energy.level is None:
        try:
            found = _estimate(energy.terms[0], energy.quantile, energy.temperature, x, binds)
        except ContradictionError:  # no point fulfils the operand, and its complement needs no level
            return
        energy.level, energy.level_error = found.value, found.standard_error


def _estimate(energy: Energy, quantile: float, temperature: float, x: Tensor, binds: frozenset[str]) -> Estimate:
    free = sorted((energy.required_conditions | (energy.conditions & binds)) - {CHAINS})
    if free:
        raise _refusal(energy, f"it depends on {', '.join(free)}: bind it first, as in `~A.given({free[0]}=...)`")
    _check_rows(energy)
    exact = exact_level(energy, quantile, temperature, x)
    if exact is not None:
        return exact
    count = _DRAWS if x[0].numel() <= _LARGE else _DRAWS_OF_LARGE_POINTS
    try:
        points, trace = energy.latents.sample((count, *x.shape[1:]), seed=_SEED, trace=True, dtype=x.dtype)
        with torch.no_grad():
            evidence = twin(energy).evidence(points.to(x.device))
    except ContradictionError:
        raise
    except (ComposableEnergyError, RuntimeError) as error:
        raise _refusal(energy, f"{type(error).__name__}: {error}") from error
    if not evidence.isfinite().all():
        raise _refusal(energy, f"{int((~evidence.isfinite()).sum())} of {len(evidence)} draws have no finite energy")
    if trace.sampler.stationary and energy.has_value and len(trace.energies) >= 4:
        before, after = (quantile_of(trace.energies[i], quantile) for i in (3 * len(trace.energies) // 4, -1))
        moved, error = after.value - before.value, math.hypot(before.standard_error, after.standard_error)
        if abs(moved) > _DRIFT * max(error, 1e-12):
            warn_caller(
                f"The {quantile:.0%} quantile of {energy} moved by {moved:.3g} in the last quarter of the pilot run, with a standard "
                f"error of {error:.2g}: the run may not have converged. Give the level: `negate(A, mode='level', level=...)`.",
                LevelWarning,
            )
    return level_of_draws(evidence, quantile, temperature)


def _check_rows(energy: Energy) -> None:
    for part in energy.modules():
        values: Mapping[str, Any] = getattr(part, "values", {}) if isinstance(part, Energy) else {}
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and len(value) > 1:
                raise _refusal(energy, f"it has {len(value)} rows of {name}, each with a level of its own: bind one value for all")


def _refusal(energy: Energy, reason: str) -> CalibrationError:
    return CalibrationError(
        f"~ of {energy} is the complement of where its draws are, and it cannot be sampled ({reason}). Give the level by "
        "`negate(A, mode='level', level=...)`; or take another mode of `negate`: 'power' (-0.01 E, the paper's rule, unbounded), "
        "'contrast' for `A.relative_to(base)`, or 'complement' for an event."
    )
