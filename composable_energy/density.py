r"""Log densities and scores: $\log p(x) = -E(x) - \log Z$ and $\nabla_x \log p(x) = -\nabla E(x)$."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from composable_energy.checks import check_value
from composable_energy.errors import ExpressionError, NormalizerError
from composable_energy.lift import ScoreEnergy
from composable_energy.second_derivatives import differentiable_gradient

if TYPE_CHECKING:
    from composable_energy.energy import Energy


def log_prob(energy: Energy, x: Tensor, log_z: Any = None, **conditions: Any) -> Tensor:
    r"""Returns $\log p(x) = -E(x) - \log Z$; see `Energy.log_prob`."""
    check_value(energy, "`log_prob`")
    known = energy.log_normalizer if log_z is None else log_z
    if known is None:
        raise NormalizerError(
            f"log Z of {energy} is not known, so its energies are log densities up to a constant only. Estimate it: "
            "`E.log_prob(x, log_z=composable_energy.log_z(E))`; for a mixture `composable_energy.calibrate(E).log_prob(x)`."
        )
    return -energy(x, **conditions) - (known if isinstance(known, Tensor) else float(known))


def score(energy: Energy, x: Tensor, *, create_graph: bool = False, **conditions: Any) -> Tensor:
    r"""Returns $\nabla_x \log p(x)$; see `Energy.score`."""
    if not create_graph:
        return -energy.with_gradient(x, **conditions)[1]
    if isinstance(energy, ScoreEnergy):
        return energy.predict(x, **conditions)
    if not energy.has_value:
        raise ExpressionError(
            f"{energy} has a gradient and no value, so its score has no graph. Train the score models in it one by one, by "
            "`score(x, create_graph=True)` of each."
        )
    return -differentiable_gradient(energy, x, **conditions)[1]
