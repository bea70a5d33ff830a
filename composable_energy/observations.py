"""Terms for what was observed or is preferred: functions that build the energies `observed` and `reward` of a plug-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.registry.api import REGISTRY

__all__ = ["observed", "reward"]


def observed(y: Tensor, operator: Any = None, noise: Any = None, **options: Any) -> Energy:
    r"""Returns the evidence for a measurement $y$ of $A x$: with a base, the posterior of an inverse problem.

    Args:
        y: What was measured.
        operator: $A$: a mask of truth values, any function of points of shape $(B, *)$, an operator of `composable_energy_observed` or its
            name, or a mapping with `name` and options; None if the point itself was measured.
        noise: The standard deviation of Gaussian noise; or a noise model, its name, or a mapping with `name` and options.
        **options: Those of `composable_energy_observed.ObservedEnergy`, such as `event_shape` and `name`.

    Raises:
        PluginNotFound: No plug-in offers the energy `observed`.
        OptionError: The noise is not positive, a mask measures nothing, counts are negative, or a measured number is not finite.
        ShapeError: The measurement does not fit the operator.
        ExpressionError: The operator is not differentiable, random, or returns a number that is not finite.

    Example:
        >>> import torch, composable_energy as ce
        >>> prior = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> mean = (prior & ce.observed(torch.tensor([4.0]), lambda x: x.sum(1, keepdim=True), 0.1)).sample(1000, seed=0).mean(0)
        >>> mean.round()
        tensor([2., 2.])
    """
    return _offered("observed")(y, operator, noise, **options)


def reward(function: Callable[..., Tensor], beta: float = 1.0, **options: Any) -> Energy:
    r"""Returns the energy $-\beta\, r(x)$ of a reward: `base & ce.reward(r, beta)` has the density $p(x)\, e^{\beta r(x)}$.

    Args:
        function: The reward $r$: a function of points of shape $(B, *)$ that returns shape $(B,)$.
        beta: $\beta$.
        **options: Those of `composable_energy_observed.RewardEnergy`, such as `differentiable` and `event_shape`.

    Raises:
        PluginNotFound: No plug-in offers the energy `reward`.
        LiftError: The function is not callable.
        OptionError: $\beta$ is no finite number.
    """
    return _offered("reward")(function, beta, **options)


def _offered(name: str) -> Any:
    """Returns the class that the energy of a name stands for; built directly, it is saved by its `config()`."""
    return REGISTRY.load("energy", REGISTRY.entry("energy", name))
