"""Torch distributions as data: an allow-list of classes, with arguments that rebuild them to the bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from composable_energy.errors import ExpressionError
from composable_energy.saving.modules import same_bits
from composable_energy.supports.distributions import ARGUMENTS, argument, tensors_in

# Transformed distributions are excluded: transforms are code.
_CLASSES: Mapping[str, type[Distribution]] = {cls.__name__: cls for cls in ARGUMENTS if cls is not TransformedDistribution}


def arguments_of(distribution: Distribution) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Returns the class name of a distribution, its arguments, and the tensors that these arguments do not reproduce.

    Some constructors normalise, and a distribution converted to another dtype keeps tensors computed in the first.

    Raises:
        ExpressionError: The class is not on the list.
    """
    cls = type(distribution)
    if cls not in _CLASSES.values():
        raise ExpressionError(
            f"A {cls.__name__} cannot be saved; known are {', '.join(sorted(_CLASSES))}. Offer the energy as a plug-in that builds it, and "
            "get it from `composable_energy.get`."
        )
    distribution = copy.copy(distribution)  # its lazy properties are then cached in the copy
    arguments = {name: argument(distribution, name) for name in ARGUMENTS[cls]}
    own, fresh = tensors_in(distribution), build_distribution(cls.__name__, arguments, {})
    if fresh.batch_shape != distribution.batch_shape:
        raise ExpressionError(
            f"A {cls.__name__} of batch shape {tuple(distribution.batch_shape)} whose parameters give {tuple(fresh.batch_shape)} cannot be "
            "saved; build it from parameters of the whole shape."
        )
    rebuilt = tensors_in(fresh)
    exact = {
        path: tensor
        for path, (_, tensor) in own.items()
        if path in rebuilt and tensor.shape == rebuilt[path][1].shape and not same_bits(tensor, rebuilt[path][1])
    }
    return cls.__name__, arguments, exact


def build_distribution(name: str, arguments: Mapping[str, Any], exact: Mapping[str, Any]) -> Distribution:
    """Returns a distribution from the results of `arguments_of`.

    Raises:
        ValueError: The class is not on the list, or arguments or tensors do not fit.
    """
    cls = _CLASSES.get(name)
    if cls is None:
        raise ValueError(f"the distribution {name!r} is not known")
    if not all(isinstance(value, Tensor | Distribution) or type(value) is int for value in arguments.values()):
        raise ValueError(f"the distribution {name} has an argument of another type than tensor, number or distribution")
    if any(isinstance(value, Tensor) and value.dtype == torch.bool for value in (*arguments.values(), *exact.values())):
        raise ValueError(f"the distribution {name} has truth values as numbers")
    values: dict[str, Any] = {
        key: value.detach() if isinstance(value, Tensor) else value for key, value in arguments.items()
    }  # parameters of older files
    result = _copy_nested(cls(**values, validate_args=False))
    own = tensors_in(result)
    for path, tensor in exact.items():
        if path not in own or not isinstance(tensor, Tensor) or tensor.shape != own[path][1].shape:
            raise ValueError(f"the distribution {name} has no tensor {path!r} of this shape")
        vars(own[path][0])[path.rpartition(".")[2]] = tensor
    return result


def _copy_nested(distribution: Distribution) -> Distribution:
    """Copies a distribution and those inside, which two distributions of a file may share."""
    result = copy.copy(distribution)
    for name, value in vars(result).items():
        if isinstance(value, Distribution):
            setattr(result, name, _copy_nested(value))
    return result
