"""Functions of plug-ins of this library: normalisers, classifiers, measurements, rewards, trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.registry import get_own
from composable_energy.registry.api import REGISTRY


def log_z(energy: Any, **options: Any) -> Any:
    r"""Estimates $\log Z = \log \int e^{-E(x)}\, dx$; see `composable_energy_mcmc.estimate_log_z`.

    Args:
        energy: The energy, or anything that `as_energy` accepts.
        **options: Those of `composable_energy_mcmc.estimate_log_z`, such as `seed`, `event_shape`, `base` and `draws`.

    Raises:
        PluginNotFound: No package offers the estimator `log-z`.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(2,))  # Z is 2 pi
        >>> abs(float(ce.log_z(bowl, seed=0)) - 1.838) < 0.02
        True
    """
    return get_own("estimator", "log-z")(energy, **options)


def calibrate(expression: Any, **options: Any) -> Energy:
    """Returns an expression whose mixtures draw from each branch in proportion to its weight.

    See `composable_energy_mcmc.calibrate_mixtures`.

    Args:
        expression: The expression; it stays as it is.
        **options: `seed`, and options of `composable_energy_mcmc.estimate_log_z` for every branch.

    Raises:
        PluginNotFound: No package offers the estimator `calibrate`.

    Example:
        >>> import torch, composable_energy as ce
        >>> narrow, wide = (ce.as_energy(lambda x, s=s: (x / s).square().sum(1) / 2, event_shape=(2,)) for s in (0.6, 2.0))
        >>> mixture = ce.calibrate(narrow | wide, seed=0)
        >>> [round(z, 1) for z in mixture.log_z]
        [0.8, 3.2]
    """
    return get_own("estimator", "calibrate")(expression, **options)


def classifier(
    energy: Energy | Sequence[Energy] | Mapping[Any, Energy], over: str = "y", classes: Iterable[Any] | int | None = None, **options: Any
) -> Any:
    r"""Returns a classifier by energies, $p(k \mid x) \propto e^{-E_k(x)}$, with `probabilities(x)` and `predict(x)`.

    Args:
        energy: An energy with a condition, a mixture `A | B`, a list of energies, or energies by the names of classes.
        over: The condition whose values are the classes.
        classes: The values of the condition, as a list or their number; or the names of the branches. None takes the labels of a
            classifier in the expression, or the texts of the branches.
        **options: Those of `composable_energy_classification.Classifier`, such as `temperature` and `refinement`.

    Raises:
        PluginNotFound: No package offers the estimator `classifier`.
        OptionError: There is nothing to classify by, there are less than two classes, or an option is out of range.

    Example:
        >>> import torch, composable_energy as ce
        >>> left, right = (ce.as_energy(torch.distributions.Normal(torch.tensor([m]), 1.0)) for m in (-1.0, 1.0))
        >>> ce.classifier({"left": left, "right": right}).predict(torch.tensor([[-2.0], [3.0]]))
        tensor([0, 1])
    """
    return get_own("estimator", "classifier")(energy, over, classes, **options)


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
    return _offered("over-time")(pair, horizon, **options)


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
