"""Torch distributions as data: an allow-list of classes, each with the arguments that make it again to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, distributions
from torch.distributions import Distribution

from composable_energy.errors import ExpressionError

__all__ = ["arguments_of", "made"]

# The class, then for each argument the attribute that holds it; an attribute in a pair is exact where the public one is computed.
_ARGUMENTS: Mapping[type[Distribution], tuple[str | tuple[str, str], ...]] = {
    distributions.Beta: ("concentration1", "concentration0"),
    distributions.Categorical: ("logits",),
    distributions.Cauchy: ("loc", "scale"),
    distributions.Chi2: ("df",),
    distributions.Dirichlet: ("concentration",),
    distributions.Exponential: ("rate",),
    distributions.FisherSnedecor: ("df1", "df2"),
    distributions.Gamma: ("concentration", "rate"),
    distributions.Gumbel: ("loc", "scale"),
    distributions.HalfCauchy: ("scale",),
    distributions.HalfNormal: ("scale",),
    distributions.Independent: (("base_distribution", "base_dist"), "reinterpreted_batch_ndims"),
    distributions.InverseGamma: ("concentration", "rate"),
    distributions.Kumaraswamy: ("concentration1", "concentration0"),
    distributions.Laplace: ("loc", "scale"),
    distributions.LogNormal: ("loc", "scale"),
    distributions.LowRankMultivariateNormal: ("loc", ("cov_factor", "_unbroadcasted_cov_factor"), ("cov_diag", "_unbroadcasted_cov_diag")),
    distributions.MixtureSameFamily: (
        ("mixture_distribution", "_mixture_distribution"),
        ("component_distribution", "_component_distribution"),
    ),
    distributions.MultivariateNormal: ("loc", ("scale_tril", "_unbroadcasted_scale_tril")),
    distributions.Normal: ("loc", "scale"),
    distributions.Pareto: ("scale", "alpha"),
    distributions.StudentT: ("df", "loc", "scale"),
    distributions.Uniform: ("low", "high"),
    distributions.VonMises: ("loc", "concentration"),
    distributions.Weibull: ("scale", "concentration"),
}
_CLASSES: Mapping[str, type[Distribution]] = {cls.__name__: cls for cls in _ARGUMENTS}


def arguments_of(distribution: Distribution) -> tuple[str, dict[str, Any]]:
    """Returns the name of a distribution's class and its arguments: tensors, numbers and distributions.

    Raises:
        ExpressionError: The class is not on the list.
    """
    cls = type(distribution)
    if cls not in _ARGUMENTS:
        raise ExpressionError(
            f"A {cls.__name__} cannot be saved; known are {', '.join(sorted(_CLASSES))}. Offer the energy as a plug-in that makes it, and "
            "take it from `composable_energy.get_energy`."
        )
    pairs = [(name, name) if isinstance(name, str) else name for name in _ARGUMENTS[cls]]
    return cls.__name__, {name: getattr(distribution, attribute) for name, attribute in pairs}


def made(name: str, arguments: Mapping[str, Any]) -> Distribution:
    """Returns a distribution of its class's name and arguments.

    Raises:
        ValueError: The class is not on the list, or the arguments do not fit.
    """
    cls = _CLASSES.get(name)
    if cls is None:
        raise ValueError(f"the distribution {name!r} is not known")
    if not all(isinstance(value, Tensor | Distribution) or type(value) is int for value in arguments.values()):
        raise ValueError(f"the distribution {name} has an argument of another type than tensor, number or distribution")
    result = cls(**arguments, validate_args=False)
    if isinstance(result, distributions.Categorical):
        result.logits = arguments["logits"]  # the constructor normalises, which is not exact the second time
    return result
