"""What an expression needs before it is sampled: estimated levels, and a warning where shares are arbitrary."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra.disjunction import Disjunction
from composable_energy.algebra.negation import Negation
from composable_energy.energy import Energy
from composable_energy.errors import ContradictionError, MixtureWarning

__all__ = ["estimate_levels", "warn_of_shares"]


def estimate_levels(energy: Energy, point: Tensor, conditions: Mapping[str, float]) -> None:
    """Evaluates an expression at one point if it has negations with a level, so that all levels are current.

    Args:
        energy: The expression, as it is sampled.
        point: A point, without an axis for the batch.
        conditions: Conditions that the sampler binds.

    Raises:
        ExpressionError: The operand of a negation cannot be sampled.
    """
    levels = (part for part in energy.modules() if isinstance(part, Negation) and part.mode == "level" and part.given_level is None)
    if next(levels, None) is None or not energy.evidence_has_value:
        return
    x = point.unsqueeze(0)
    values: dict[str, Any] = {name: x.new_full((1,), value) for name, value in conditions.items()}
    try:
        with torch.no_grad():
            energy(x, **values)
    except ContradictionError:  # the first step reports that no point fulfils it
        return


def warn_of_shares(energy: Energy, stacklevel: int = 4) -> None:
    """Warns of mixtures of densities whose shares depend on unknown normalisers.

    Args:
        energy: The expression.
        stacklevel: The number of calls between the warning and the caller.
    """
    for part in energy.modules():
        if isinstance(part, Disjunction) and part.shares == "unknown":
            warnings.warn(
                f"{part} mixes densities with unknown normalisers: a constant added to one energy changes the shares of its branches. "
                "Estimate them by `composable_energy.calibrate(E)` or `any_of(..., calibrate=True)`; or accept the shares as they are by "
                "`any_of(..., weights=[1, 1])`.",
                MixtureWarning,
                stacklevel=stacklevel,
            )
            return
