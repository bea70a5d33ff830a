"""Encoding of values as JSON data; values other than numbers and texts have a tag, as in `{"$tensor": "mean"}`."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, TransformedDistribution
from torch.distributions.constraints import Constraint

from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import Origin
from composable_energy.errors import ExpressionError, ExtraNotInstalled, PluginConflictError, PluginLoadError, PluginNotFound
from composable_energy.options import Recommendation, plain_values
from composable_energy.registry import get
from composable_energy.registry.catalog import check_origin
from composable_energy.supports import arguments_of, build_support
from composable_energy.supports.distributions import ARGUMENTS, argument, tensors_in

FLOATING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INTEGERS = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
"""The types of the tensors of nodes; objects of plug-ins may have others."""
_DEEPEST = 24
_MOST, _MOST_PRODUCT, _MOST_STEPS = 10_000, 5 * 10**7, 100_000  # of whole numbers of a recommended sampler, and of its steps
# Transformed distributions are excluded: transforms are code.
_CLASSES: Mapping[str, type[Distribution]] = {cls.__name__: cls for cls in ARGUMENTS if cls is not TransformedDistribution}


class Sink(Protocol):
    """Stores tensors, energies and modules, and returns their names in the file."""

    def tensor(self, tensor: Tensor, hint: str) -> str: ...
    def energy(self, energy: Energy) -> int: ...
    def module(self, module: nn.Module, hint: str) -> list[Any]: ...


class Source(Protocol):
    """Returns tensors, energies and modules by their names in the file."""

    def tensor(self, name: Any, learnable: bool) -> Tensor: ...
    def energy(self, index: Any) -> Energy: ...
    def module(self, reference: Any) -> nn.Module: ...


def encode(value: Any, sink: Sink, hint: str) -> Any:
    """Returns a value as JSON data.

    Args:
        value: Numbers, texts, lists, tuples, dicts, slices, tensors, distributions, supports, energies and modules.
        sink: Stores tensors, energies and modules.
        hint: The name of the value, for messages and for the names of tensors.

    Raises:
        ExpressionError: The value has another type, or a number is not finite.
    """
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            if not math.isfinite(value):
                raise ExpressionError(f"{hint} is {value} and cannot be saved; numbers must be finite.")
            return float(value)
        case nn.Parameter():
            return {"$parameter": sink.tensor(value, hint)}
        case Tensor():
            return {"$tensor": sink.tensor(value, hint)}
        case Energy():
            return {"$energy": sink.energy(value)}
        case nn.Module():
            return {"$module": sink.module(value, hint)}
        case Distribution():
            name, arguments, exact = _distribution_arguments(value)
            return {"$distribution": [name, encode(arguments, sink, hint), encode(exact, sink, hint)]}
        case Constraint():
            name, arguments = arguments_of(value)
            return {"$support": [name, encode(arguments, sink, hint)]}
        case list():
            return [encode(item, sink, f"{hint}.{i}") for i, item in enumerate(value)]
        case tuple():
            return {"$tuple": [encode(item, sink, f"{hint}.{i}") for i, item in enumerate(value)]}
        case slice():
            return {"$slice": encode([value.start, value.stop, value.step], sink, hint)}
        case Mapping() if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encode(item, sink, f"{hint}.{key}") for key, item in value.items()}
        case _:
            raise ExpressionError(
                f"{hint} is a {type(value).__name__} and cannot be saved; numbers, texts, tensors, lists and dicts of them can, and so can "
                "modules that a plug-in built (`composable_energy.get`)."
            )


def has_references(data: Any) -> bool:
    """Returns whether encoded data contain energies or modules."""
    if isinstance(data, dict):
        return not data.keys().isdisjoint({"$energy", "$module"}) or any(map(has_references, data.values()))
    return isinstance(data, list) and any(map(has_references, data))


def decode(data: Any, source: Source, depth: int = 0) -> Any:
    """Returns the value of encoded data.

    Raises:
        ValueError: The data are malformed or nested too deeply.
    """
    if depth > _DEEPEST:
        raise ValueError("values are nested too deeply")
    if isinstance(data, list):
        return [decode(item, source, depth + 1) for item in data]
    if isinstance(data, float) and not math.isfinite(data):
        raise ValueError(f"{data} is no finite number")
    if not isinstance(data, dict):
        return data
    tags = [key for key in data if key.startswith("$")]
    if not tags:
        return {key: decode(item, source, depth + 1) for key, item in data.items()}
    if len(data) != 1:
        raise ValueError(f"{tags[0]} is not the only key")
    (tag, content), *_ = data.items()
    match tag, content:
        case (("$tensor" | "$parameter"), str()):
            return source.tensor(content, tag == "$parameter")
        case "$energy", int():
            return source.energy(content)
        case "$module", _:
            return source.module(content)
        case "$distribution", [str(name), dict(arguments), dict(exact)]:
            return _build_distribution(name, decode(arguments, source, depth + 1), decode(exact, source, depth + 1))
        case "$support", [str(name), list(arguments)]:
            return build_support(name, decode(arguments, source, depth + 1))
        case "$tuple", list():
            return tuple(decode(content, source, depth + 1))
        case "$slice", [start, stop, step] if all(end is None or type(end) is int for end in content):
            return slice(start, stop, step)
    raise ValueError(f"{tag} has invalid content")


def encode_recommendation(recommended: Recommendation | None, sink: Sink, hint: str) -> Any:
    """Returns a recommended sampler as JSON data.

    Raises:
        ExpressionError: An option cannot be saved.
    """
    if recommended is None:
        return None
    options = encode(dict(recommended.options), sink, f"{hint}.recommended")
    data = {"sampler": recommended.sampler, "options": options, "threads": recommended.threads}
    return {**data, "precedence": recommended.precedence} if recommended.precedence else data


def decode_recommendation(data: Any, source: Source) -> Recommendation | None:
    """Returns the recommended sampler of encoded data, whose numbers are so small that a call ends.

    Raises:
        ValueError: The data are malformed, or the sampler does not take the options, or not from a file.
    """
    if data is None:
        return None
    if not isinstance(data, dict) or data.keys() - {"precedence"} != {"sampler", "options", "threads"}:
        raise ValueError("its recommended sampler is incomplete")
    recommended = Recommendation(data["sampler"], decode(data["options"], source), data["threads"], data.get("precedence", 0))
    numbers = [number for number in plain_values(recommended.options) if type(number) is int and number > 1]
    if max(numbers, default=1) > _MOST or math.prod(numbers) > _MOST_PRODUCT:
        raise ValueError(f"its recommended sampler has numbers above {_MOST:,}, or with a product above {_MOST_PRODUCT:,}")
    with contextlib.suppress(PluginNotFound, ExtraNotInstalled, PluginConflictError, PluginLoadError):
        check_origin("sampler", Origin(recommended.sampler, options=recommended.options))
        sampler = get("sampler", recommended.sampler)(**recommended.options)
        if (sampler.total_steps or 0) > _MOST_STEPS:
            raise ValueError(f"its recommended sampler takes {sampler.total_steps:,} steps, and a file says at most {_MOST_STEPS:,}")
    return recommended


# Distributions ------------------------------------------------------------------------------------------------------------------------


def _distribution_arguments(distribution: Distribution) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
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
    own, fresh = tensors_in(distribution), _build_distribution(cls.__name__, arguments, {})
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


def _build_distribution(name: str, arguments: Mapping[str, Any], exact: Mapping[str, Any]) -> Distribution:
    """Returns a distribution from the results of `_distribution_arguments`.

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
    values: dict[str, Any] = {key: value.detach() if isinstance(value, Tensor) else value for key, value in arguments.items()}
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


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors are equal to the bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)
