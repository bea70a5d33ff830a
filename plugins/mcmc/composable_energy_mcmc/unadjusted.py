"""Step sizes of unadjusted samplers, by a bound of their bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError
from composable_energy.sampling import Noise, State, energy_and_gradient, normal
from composable_energy_mcmc.approach import approach, redraw_outliers
from composable_energy_mcmc.batch import finite_rows, flatten_points, select
from composable_energy_mcmc.metric import IDENTITY, Metric

_STEPS, _MEASURED = 120, 40  # of the pilots, and the last ones that are measured
_FORGET = 0.98
_FALLBACK = 0.1  # where no chain starts at a finite energy, which the driver reports
_PROBE = 1e-3  # relative to the size of points
_AWAY = 1e3  # the growth of points that have run away


def tune_unadjusted(
    energy: Energy, x: Tensor, noise: Noise, *, max_bias: float, temperature: float, metric: Metric = IDENTITY
) -> tuple[float, Tensor]:
    r"""Returns the step size of `langevin`, $\lambda = 4 b / \max_i \langle g_i^2 \rangle$, and the last points of the pilot chains.

    With the gradients $g$ of $E / T$ at whitened points, $\langle g_i^2 \rangle$ is the mean curvature along coordinate $i$, and
    $\lambda \langle g_i^2 \rangle / 4$ the relative excess of the variance along it on a Gaussian.
    """
    state = State(x, *energy_and_gradient(energy, x))
    if energy.has_value and temperature == 1:
        state, _ = approach(energy, x, noise.child("approach"), metric=metric)
        state = redraw_outliers(energy, state, noise.child("redraw"))
    if not finite_rows(state).any():
        return _FALLBACK, state.x
    curvature, squares = _probe_curvature(energy, state, metric), []
    for step in range(1, _STEPS + 1):
        length = 1 / max(curvature / temperature, 1e-30)
        kick = normal(state.x, noise.at(step))
        way = metric.unwhiten(math.sqrt(length) * kick - length / 2 / temperature * metric.whiten_gradient(state.grad))
        after = State(state.x + way, *energy_and_gradient(energy, state.x + way))
        curvature = max(_FORGET * curvature, _secant_curvature(state, after, way, metric))
        state = select(finite_rows(after), after, state)
        if step > _STEPS - _MEASURED:
            here = flatten_points(metric.whiten_gradient(state.grad))[finite_rows(state)]
            squares.append((here.double() / temperature).square().mean(0))
    if not energy.has_value and (state.x * state.grad).sum() < 0 and state.x.abs().max() > _AWAY * (1 + x.abs().max()):
        where = "its chains run away. A score is the gradient of log p and points to the density: is its sign right?"
        raise OptionError(f"No step size can be tuned for {energy}: {where}")
    steepest = torch.stack(squares).mean(0).max().item()
    if steepest == 0:
        raise OptionError(f"No step size can be tuned for {energy}: its gradients at the pilot chains are zero. Give `step_size`.")
    return 4 * max_bias / steepest, state.x


def _probe_curvature(energy: Energy, state: State, metric: Metric) -> float:
    """Returns the curvature from a small displacement along the gradient; 1 where the gradient is zero or not finite."""
    whitened = metric.whiten_gradient(state.grad)
    length = _PROBE * (1 + state.x.abs().max()) / whitened.abs().max().clamp_min(torch.finfo(state.x.dtype).tiny)
    way = metric.unwhiten(whitened * length)
    found = _secant_curvature(state, State(state.x + way, *energy_and_gradient(energy, state.x + way)), way, metric)
    return found if found > 0 else 1.0


def _secant_curvature(before: State, after: State, way: Tensor, metric: Metric) -> float:
    """Returns the largest change of the gradient per length of the way over all chains, in whitened units; 0 if none is finite."""
    change = flatten_points(metric.whiten_gradient(after.grad - before.grad)).norm(dim=1)
    ratio = change / flatten_points(metric.whiten(way)).norm(dim=1)
    ratio = ratio[ratio.isfinite()]
    return ratio.max().item() if len(ratio) else 0.0
