"""Whether the gradients that energies compute themselves are those of their values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from composable_energy.algebra import Disjunction, Negation, Weighted
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energy import Energy
from composable_energy.errors import ExpressionError
from composable_energy.gradients import Use, recording

__all__ = ["check_own_gradients", "mixes_values"]

_OFF = 0.1  # of the slope; finite differences in float32 are off by a few per cent where energies bend


def check_own_gradients(energy: Energy, x: Tensor, conditions: Mapping[str, float]) -> None:
    """Raises if an energy inside an expression has a `with_gradient` of its own that does not fit its values.

    A sampler that accepts and rejects by values would draw from another density than one that follows gradients. The values are compared
    at the points where the expression evaluates that energy, by a central difference along the gradient.

    Args:
        energy: The expression.
        x: Points, with shape $(B, *)$.
        conditions: One value for all points.

    Raises:
        ExpressionError: At more than half of the points they do not fit.
    """
    if not _has_own_gradient(energy):
        return
    rows = {name: x.new_full((len(x),), value) for name, value in conditions.items()}
    with recording() as uses:
        Weighted(energy, 1.0).with_gradient(x, **rows)
    for use in (use for use in uses if use.energy.has_value):
        slope, expected, tell = _slopes(use)
        off = tell & ~((slope - expected).abs() <= _OFF * torch.maximum(slope.abs(), expected))
        if 2 * int(off.sum()) > int(tell.sum()):
            row = int(off.nonzero()[0])
            raise ExpressionError(
                f"The values of {use.energy} do not fit its `with_gradient`: along the gradient they change by {slope[row]:.4g}, it says "
                f"{expected[row]:.4g}. Correct one of them; if `forward` has no meaning, set `has_value = False` in "
                f"{type(use.energy).__name__} and take a sampler that follows gradients alone, such as `langevin`."
            )


def mixes_values(energy: Energy) -> bool:
    """Whether the gradient of an expression depends on values of its terms, as that of a mixture does."""
    return any(isinstance(part, Disjunction) or (isinstance(part, Negation) and part.mode == "contrast") for part in energy.modules())


def _has_own_gradient(module: torch.nn.Module) -> bool:
    """Whether an energy or a part of it overrides `with_gradient`."""
    energies = (part for part in module.modules() if isinstance(part, Energy))
    return any(type(energy).with_gradient is not Energy.with_gradient for energy in energies)


def _slopes(use: Use) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the slopes along the gradient by values and by the gradient, and where the rounding is small enough to compare them."""
    x, gradient, eps = use.x, use.gradient, torch.finfo(use.x.dtype).eps
    expected = gradient.reshape(len(x), -1).norm(dim=1)
    step = eps ** (1 / 3) * (1 + x.abs().max())
    move = step * gradient / unsqueeze_to(expected.clamp_min(torch.finfo(x.dtype).tiny), x)
    with torch.no_grad():
        up, down = (use.energy(point, **use.conditions) for point in (x + move, x - move))
    rounding = 100 * eps * (1 + up.abs()) / step
    slope = (up - down) / (2 * step)
    return slope, expected, slope.isfinite() & expected.isfinite() & (expected > rounding / _OFF)
