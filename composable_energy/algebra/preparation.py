"""What an expression needs before it is sampled: levels of negations, known shares of branches, and a warning where they are arbitrary."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from composable_energy.algebra.decoded import Decoded
from composable_energy.algebra.disjunction import Disjunction
from composable_energy.algebra.level import exact_level, level_of_draws, quantile_of
from composable_energy.algebra.negation import Negation
from composable_energy.algebra.relative import Conditioned, PulledBack, Relative
from composable_energy.arithmetic import Estimate
from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy
from composable_energy.errors import CalibrationError, ComposableEnergyError, ContradictionError, LevelWarning, MixtureWarning
from composable_energy.notes import warn_caller
from composable_energy.twins import contents, twin

_SEED = 0
_DRAWS, _DRAWS_OF_LARGE_POINTS, _LARGE = 4096, 512, 256
_DRIFT = 5.0  # standard errors between the level at three quarters of the run and at its end
_UNKNOWN_ERROR = 0.1  # of a log Z that was given without one


class Branch(NamedTuple):
    r"""A branch of a mixture whose shares are known.

    Attributes:
        energy: $E_k$, with the bases.
        shift: $s_k$, so that the energy of the mixture is $-\log \sum_k e^{-E_k - s_k}$.
        share: The probability of the branch.
        error: The standard error of the share.
    """

    energy: Energy
    shift: float
    share: float
    error: float


def known_branches(energy: Energy) -> tuple[Branch, ...]:
    """Returns the branches of a mixture with known shares, those of mixtures inside it included; none for any other energy."""
    found = _find_branches(energy) if isinstance(energy, Disjunction | Relative | Decoded) else ()
    if len(found) < 2:
        return ()
    logs = [log for *_, log, _ in found]
    highest = max(logs)
    parts = [math.exp(log - highest) for log in logs]
    shares, errors = [part / sum(parts) for part in parts], [error for *_, error in found]
    others = sum((share * error) ** 2 for share, error in zip(shares, errors, strict=True))
    return tuple(
        Branch(part, shift, share, share * math.sqrt(max(0.0, others + (1 - 2 * share) * error**2)))
        for (part, shift, _, error), share in zip(found, shares, strict=True)
    )


def _find_branches(energy: Energy) -> Sequence[tuple[Energy, float, float, float]]:
    """Returns branches, each with its shift, the logarithm of the integral of its part of the mixture, and the standard error of that."""
    if isinstance(energy, Relative | Decoded):  # the same density
        return _find_branches(energy.terms[0])
    if not isinstance(energy, Disjunction) or energy.formula is not None or energy.unsatisfiable:
        return ()
    found: list[tuple[Energy, float, float, float]] = []
    ones, none = (1.0,) * len(energy.terms), (None,) * len(energy.terms)
    numbers = (energy.weights or ones, energy.log_z or none, energy.log_z_errors or none)
    for term, weight, log_z, error in zip(energy.terms, *numbers, strict=True):
        if term.unsatisfiable:
            continue
        inside, shift = _find_branches(term), (log_z or 0.0) - math.log(weight)
        if not inside:
            known = term.log_normalizer
            if known is None and log_z is not None:
                known = Estimate(log_z, _UNKNOWN_ERROR if error is None else error)
            if known is None:
                return ()
            inside = [(term, 0.0, known.value, known.standard_error)]
        found += [(part, own + shift, log - shift, error) for part, own, log, error in inside]
    return found


def warn_of_shares(energy: Energy) -> None:
    """Warns of mixtures of densities whose shares depend on unknown normalisers."""
    for part in energy.modules():
        if isinstance(part, Disjunction) and part.shares == "unknown":
            warn_caller(
                f"{part} mixes densities with unknown normalisers: a constant added to one energy changes the shares of its branches. "
                "Estimate them by `composable_energy.calibrate(E)` or `any_of(..., calibrate=True)`; or accept the shares as they are by "
                "`any_of(..., weights=[1, 1])`.",
                MixtureWarning,
            )
            return


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
