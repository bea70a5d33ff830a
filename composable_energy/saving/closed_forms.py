"""Torch distributions as data: an allow-list of classes, each with the arguments that make it again to the bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, distributions
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform

from composable_energy.errors import ExpressionError
from composable_energy.saving.modules import same_bits

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


def arguments_of(distribution: Distribution) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Returns the name of a distribution's class, its arguments, and those of its tensors that differ from what these make.

    Some constructors normalise, and a distribution converted to another dtype keeps what was computed in the first.

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
    arguments = {name: getattr(distribution, attribute) for name, attribute in pairs}
    own, fresh = _tensors_in(distribution), _tensors_in(made(cls.__name__, arguments, {}))
    exact = {path: tensor for path, (_, tensor) in own.items() if path in fresh and not same_bits(tensor, fresh[path][1])}
    return cls.__name__, arguments, exact


def made(name: str, arguments: Mapping[str, Any], exact: Mapping[str, Any]) -> Distribution:
    """Returns a distribution of its class's name, its arguments, and the tensors that differ from what these make.

    Raises:
        ValueError: The class is not on the list, or arguments or tensors do not fit.
    """
    cls = _CLASSES.get(name)
    if cls is None:
        raise ValueError(f"the distribution {name!r} is not known")
    if not all(isinstance(value, Tensor | Distribution) or type(value) is int for value in arguments.values()):
        raise ValueError(f"the distribution {name} has an argument of another type than tensor, number or distribution")
    result = _copied(cls(**arguments, validate_args=False))
    places = _tensors_in(result)
    for path, tensor in exact.items():
        if path not in places or not isinstance(tensor, Tensor) or tensor.shape != places[path][1].shape:
            raise ValueError(f"the distribution {name} has no tensor {path!r} of this shape")
        vars(places[path][0])[path.rpartition(".")[2]] = tensor
    return result


def _tensors_in(holder: Any, prefix: str = "") -> dict[str, tuple[Any, Tensor]]:
    """Returns the tensors inside a distribution and what holds each, by path."""
    result: dict[str, tuple[Any, Tensor]] = {}
    for name, value in vars(holder).items():
        if isinstance(value, Tensor) and name != "_param":  # one of the others again
            result[prefix + name] = (holder, value)
        elif isinstance(value, Distribution | Transform) and (name != "_inv" or isinstance(holder, _InverseTransform)):
            result |= _tensors_in(value, f"{prefix}{name}.")
        elif isinstance(value, list) and all(isinstance(item, Transform) for item in value):
            for i, item in enumerate(value):
                result |= _tensors_in(item, f"{prefix}{name}.{i}.")
    return result


def _copied(distribution: Distribution) -> Distribution:
    """Two distributions of a file may share a part, which is written to."""
    result = copy.copy(distribution)
    for name, value in vars(result).items():
        if isinstance(value, Distribution):
            setattr(result, name, _copied(value))
    return result
