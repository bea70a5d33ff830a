"""Checks of energies at the start: that gradients fit values, and that the energy of a point does not depend on other points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from composable_energy.algebra import Negation, Node, Weighted
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import Use, evaluating
from composable_energy.errors import ExpressionError
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.trace import Values
from composable_energy.sampling.wrappers import EnergyWrapper

_SLOPE_TOLERANCE = 0.1  # relative; finite differences in float32 are off by a few per cent where energies bend


def check_own_gradients(energy: Energy, x: Tensor, conditions: Mapping[str, float]) -> None:
    """Raises if a part of an expression overrides `with_gradient` by gradients that do not fit its values.

    A sampler that accepts and rejects by values would draw from another density than one that follows gradients. The values are compared
    at the points where the expression evaluates that energy, by a central difference along the gradient.

    Args:
        energy: The expression.
        x: Points, with shape $(B, *)$.
        conditions: One value for all points.

    Raises:
        ExpressionError: Values and gradients do not fit at more than half of the points.
    """
    if not any(getattr(part, "has_own_gradient", False) and not isinstance(part, EnergyWrapper) for part in energy.modules()):
        return
    with evaluating(uses=[]) as check:
        Weighted(energy, 1.0).with_gradient(x, **{name: x.new_full((len(x),), value) for name, value in conditions.items()})
    for use in check.uses or ():
        gradient = use.gradient
        if gradient is None or not use.energy.has_value or isinstance(use.energy, EnergyWrapper):
            continue
        eps = torch.finfo(use.x.dtype).eps
        expected = gradient.reshape(len(use.x), -1).norm(dim=1)
        step = eps ** (1 / 3) * (1 + use.x.abs().max())
        move = step * gradient / unsqueeze_to(expected.clamp_min(torch.finfo(use.x.dtype).tiny), use.x)
        with torch.no_grad():
            up, down = use.energy(use.x + move, **use.conditions), use.energy(use.x - move, **use.conditions)
        slope, rounding = (up - down) / (2 * step), 100 * eps * (1 + up.abs()) / step
        measurable = slope.isfinite() & expected.isfinite() & (expected > rounding / _SLOPE_TOLERANCE)
        off = measurable & ~((slope - expected).abs() <= _SLOPE_TOLERANCE * torch.maximum(slope.abs(), expected))
        if 2 * int(off.sum()) > int(measurable.sum()):
            row = int(off.nonzero()[0])
            raise ExpressionError(
                f"The values of {use.energy} do not fit its `with_gradient`: along the gradient they change by {slope[row]:.4g}, it says "
                f"{expected[row]:.4g}. Correct one of them; if `forward` has no meaning, set `has_value = False` in "
                f"{type(use.energy).__name__} and take a sampler that follows gradients alone, such as `langevin`."
            )


def check_detached(uses: Sequence[Use]) -> None:
    """Raises if an energy that autograd finds constant changes with its points: expressions would lack its gradient without a word.

    Walls and steps, which are constant nearly everywhere, are right, and so are energies that declare to have no gradient.

    Args:
        uses: The calls of energies, others than such included.

    Raises:
        ExpressionError: The values change at more than half of the points.
    """
    for use in {use.energy: use for use in uses if use.gradient is None and use.energy.has_gradient}.values():
        x, eps = use.x, torch.finfo(use.x.dtype).eps
        way = torch.arange(x[0].numel()).cos().to(x).reshape(x.shape[1:]) * (eps ** (1 / 3) * (1 + x.abs().max()))
        with torch.no_grad():
            values = torch.stack([use.energy(x + far * way, **use.conditions) for far in (-3, -1, 1, 3)])
        known = values.isfinite().all(0)
        before, after = ((values[i] - values[i + 1]).abs() > 100 * eps * (1 + values[i].abs()) for i in (0, 2))
        changed = known & before & after  # a step at the point itself is between them
        if 2 * int(changed.sum()) > int(known.sum()):
            raise ExpressionError(
                f"{use.energy} changes with its points, but its result has no gradient: it is computed under `torch.no_grad`, detached, or "
                "made a new tensor of numbers. Compute it with torch operations on the points throughout."
            )


def check_rows(problem: Problem, ids: Tensor, x: Tensor) -> None:
    """Raises if the energy of a point depends on the other points of its batch, or on its place among them.

    A point is evaluated beside others and beside copies of itself; a single point beside another one and alone. Energies that draw random
    numbers differ without that, and are not judged.

    Args:
        problem: What is sampled.
        ids: The chains of the points, counted from 0, with shape $(B,)$.
        x: The points, with shape $(B, *)$.

    Raises:
        ExpressionError: A value differs by more than rounding.
    """
    row = int(x.reshape(len(x), -1).norm(dim=1).argsort()[len(x) // 2])
    others = x
    if not (x != x[:1]).any():
        ids = ids.repeat(2) if len(x) == 1 else ids
        others = x + (1 + x.abs()) * unsqueeze_to(torch.linspace(0, 0.1, len(ids)).to(x), x)
    copies, problem = others[row].expand_as(x).contiguous(), replace(problem, batch_size=len(ids))
    try:
        values, again = problem.values(ids, others), problem.values(ids[row].repeat(len(x)), copies)
        near = torch.finfo(values.energies.dtype).eps ** (2 / 3)
        if torch.allclose(again.energies, values.energies[row], near, near) and torch.allclose(again.grads, values.grads[row], near, near):
            return  # the usual case, quickly
        expected = (tensor[row].expand(len(x), *tensor.shape[1:]) for tensor in (values.energies, values.grads))
        found = problem.difference(Values(again.chains, copies, *expected))
        if found is None or problem.difference(values) is not None:
            return
    except Exception:  # where an energy raises is found by the chains
        return
    raise ExpressionError(
        f"The energy of a point by {problem.plain} depends on the other points of its batch, or on its place. Of one point beside others "
        f"and beside copies of itself: {found}. Data as long as the batch are broadcast along it, as in `x[:, 0] - y`: give them an axis "
        "of their own, `(x - y).square().sum(1)`. A mean over the batch, a softmax over `dim=0` and BatchNorm in training mode depend on "
        "the others."
    )


def mixes_values(energy: Energy) -> bool:
    """Returns whether the gradient of an expression depends on values of its terms, as that of a mixture does."""
    for part in energy.modules():
        if isinstance(part, Node) and not part.sums and (not isinstance(part, Negation) or part.mode == "contrast"):
            return True
    return False
