"""Torch distributions as data: an allow-list of classes, each with the arguments that make it again to the bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from composable_energy.distribution_arguments import ARGUMENTS, argument, parameters_in, tensors_in
from composable_energy.errors import ExpressionError
from composable_energy.saving.modules import same_bits

__all__ = ["arguments_of", "build_distribution"]

# What is made of transforms is code.
_CLASSES: Mapping[str, type[Distribution]] = {cls.__name__: cls for cls in ARGUMENTS if cls is not TransformedDistribution}


def arguments_of(distribution: Distribution) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Returns the name of a distribution's class, its arguments, and those of its tensors that differ from what these make.

    Some constructors normalise, and a distribution converted to another dtype keeps what was computed in the first.

    Raises:
        ExpressionError: The class is not on the list.
    """
    cls = type(distribution)
    if cls not in _CLASSES.values():
        raise ExpressionError(
            f"A {cls.__name__} cannot be saved; known are {', '.join(sorted(_CLASSES))}. Offer the energy as a plug-in that makes it, and "
            "take it from `composable_energy.get_energy`."
        )
    distribution = copy.copy(distribution)  # which keeps what its properties compute
    learnt = {path: parameter for path, parameter in parameters_in(distribution).items() if "." not in path}
    names = next(names for names in ARGUMENTS[cls] if learnt.keys() <= set(names))
    arguments = {name: learnt.get(name, argument(distribution, name)) for name in names}
    own, fresh = tensors_in(distribution), build_distribution(cls.__name__, arguments, {})
    if fresh.batch_shape != distribution.batch_shape:
        raise ExpressionError(
            f"A {cls.__name__} of batch shape {tuple(distribution.batch_shape)} whose parameters give {tuple(fresh.batch_shape)} cannot be "
            "saved; build it from parameters of the whole shape."
        )
    if learnt:
        return cls.__name__, arguments, {}
    again = tensors_in(fresh)
    exact = {
        path: tensor
        for path, (_, tensor) in own.items()
        if path in again and tensor.shape == again[path][1].shape and not same_bits(tensor, again[path][1])
    }
    return cls.__name__, arguments, exact


def build_distribution(name: str, arguments: Mapping[str, Any], exact: Mapping[str, Any]) -> Distribution:
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
    places = tensors_in(result)
    for path, tensor in exact.items():
        if path not in places or not isinstance(tensor, Tensor) or tensor.shape != places[path][1].shape:
            raise ValueError(f"the distribution {name} has no tensor {path!r} of this shape")
        vars(places[path][0])[path.rpartition(".")[2]] = tensor
    return result


def _copied(distribution: Distribution) -> Distribution:
    """Two distributions of a file may share a part, which is written to."""
    result = copy.copy(distribution)
    for name, value in vars(result).items():
        if isinstance(value, Distribution):
            setattr(result, name, _copied(value))
    return result
