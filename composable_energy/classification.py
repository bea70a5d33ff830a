"""Classifiers by energies: the function that builds the classifier of a plug-in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from composable_energy.energy import Energy
from composable_energy.registry import get_own

__all__ = ["classifier"]


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
