"""Energies of whole trajectories: the function that builds the energy `over-time` of a plug-in."""

from __future__ import annotations

from typing import Any

from composable_energy.energy import Energy
from composable_energy.registry.api import REGISTRY

__all__ = ["over_time"]


def over_time(pair: Any, horizon: int, **options: Any) -> Energy:
    r"""Returns the energy of trajectories of shape $(B, T, d)$ that sums an energy of states in succession, $\sum_t E(x_t, x_{t+1})$.

    `over_time(dynamics, 40) & start(s0) & goal(g) & ~obstacle` is an ordinary expression; `composable_energy_planning` has its terms.

    Args:
        pair: The energy of pairs, with `event_shape` $(2, d)$, or of $k$ states in succession.
        horizon: $T$, the number of states of a trajectory.
        **options: `axes` and `size` of `composable_energy_planning.OverTime`.

    Raises:
        PluginNotFound: No plug-in offers the energy `over-time`.
        ShapeError: The energy has no `event_shape` of two axes.
        OptionError: The horizon is shorter than $k$.

    Example:
        >>> import torch, composable_energy as ce
        >>> step = ce.lift.CallableEnergy(lambda x: (x[:, 1] - x[:, 0]).square().sum(1) / 2, event_shape=(2, 1))
        >>> ce.over_time(step, 3)(torch.tensor([[[0.0], [1.0], [3.0]]]))
        tensor([2.5000])
    """
    built: Any = REGISTRY.load("energy", REGISTRY.entry("energy", "over-time"))
    return built(pair, horizon, **options)
