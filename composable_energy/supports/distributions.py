"""Constructor arguments and supports of torch distributions.

Arguments rebuild a distribution without validation, on other devices, or from learnable parameters.
Torch keeps broadcast copies of the arguments. An argument is a learnable parameter if rebuilding the distribution from that parameter
gives the same autograd graph with the same values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, distributions, nn
from torch.distributions import (
    Distribution,
    ExpTransform,
    Independent,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    VonMises,
)

from composable_energy.errors import LiftError
from composable_energy.supports.sets import Support, circle, ends_of, interval, plain

D = TypeVar("D", bound=Distribution)

# The names of the arguments for each class; the first of several ways is used for constants.
ARGUMENTS: Mapping[type[Distribution], tuple[tuple[str, ...], ...]] = {
    distributions.Beta: (("concentration1", "concentration0"),),
    distributions.Categorical: (("logits",), ("probs",)),
    distributions.Cauchy: (("loc", "scale"),),
    distributions.Chi2: (("df",),),
    distributions.Dirichlet: (("concentration",),),
    distributions.Exponential: (("rate",),),
    distributions.FisherSnedecor: (("df1", "df2"),),
    distributions.Gamma: (("concentration", "rate"),),
    distributions.Gumbel: (("loc", "scale"),),
    distributions.HalfCauchy: (("scale",),),
    distributions.HalfNormal: (("scale",),),
    distributions.Independent: (("base_distribution", "reinterpreted_batch_ndims"),),
    distributions.InverseGamma: (("concentration", "rate"),),
    distributions.Kumaraswamy: (("concentration1", "concentration0"),),
    distributions.Laplace: (("loc", "scale"),),
    distributions.LogNormal: (("loc", "scale"),),
    distributions.LowRankMultivariateNormal: (("loc", "cov_factor", "cov_diag"),),
    distributions.MixtureSameFamily: (("mixture_distribution", "component_distribution"),),
    distributions.MultivariateNormal: (("loc", "scale_tril"), ("loc", "covariance_matrix"), ("loc", "precision_matrix")),
    distributions.Normal: (("loc", "scale"),),
    distributions.Pareto: (("scale", "alpha"),),
    distributions.StudentT: (("df", "loc", "scale"),),
    distributions.Uniform: (("low", "high"),),
    distributions.VonMises: (("loc", "concentration"),),
    distributions.Weibull: (("scale", "concentration"),),
    TransformedDistribution: (("base_distribution", "transforms"),),
}
_INVERSE: type[Transform] = type(ExpTransform().inv)
_VIEWS = frozenset({"AsStridedBackward0", "ExpandBackward0", "SelectBackward0", "UnsqueezeBackward0"})
_LARGEST_GRAPH = 64  # nodes in graphs of torch's constructors; a larger graph is a computation of the caller


def argument(distribution: Distribution, name: str) -> Any:
    """Returns the value of an argument; a matrix that was broadcast over a batch is one matrix again."""
    value = getattr(distribution, "base_dist" if name == "base_distribution" else name)
    if name in ("scale_tril", "cov_factor", "cov_diag") and not value.requires_grad:
        while value.ndim > 1 and len(value) > 1 and value.stride(0) == 0:
            value = value[0]
    return value


def rebuild(distribution: Distribution, tensors: Mapping[str, Tensor], prefix: str = "") -> Distribution:
    """Returns a distribution with some arguments replaced, without validation.

    Args:
        distribution: A distribution of a class in `ARGUMENTS`.
        tensors: The new arguments by path, such as `loc` or `component_distribution.loc`.
        prefix: The prefix of the paths of this distribution.
    """
    own = {path.removeprefix(prefix).partition(".")[0] for path in tensors if path.startswith(prefix)}
    if not own:
        return distribution
    names = next(names for names in ARGUMENTS[type(distribution)] if own <= set(names))
    arguments = {}
    for name in names:
        value = argument(distribution, name)
        inner = isinstance(value, Distribution)
        arguments[name] = rebuild(value, tensors, f"{prefix}{name}.") if inner else tensors.get(prefix + name, value)
    result = type(distribution)(**arguments, validate_args=False)
    return result if result.batch_shape == distribution.batch_shape else result.expand(distribution.batch_shape)


def map_tensors(holder: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Returns a copy of a distribution or transform with a function applied to all tensors inside.

    A distribution with known arguments is rebuilt without validation. A categorical is copied, as its constructor would normalise again.
    """
    cls = type(holder)
    if cls in ARGUMENTS and cls is not distributions.Categorical:
        arguments = {name: _map_value(argument(holder, name), function) for name in ARGUMENTS[cls][0]}
        return cls(**arguments, validate_args=False)
    if isinstance(holder, _INVERSE):
        return Inverse(map_tensors(holder.inv, function))
    result, done = copy.copy(holder), {}
    for name, value in vars(result).items():
        moved = done[id(value)] if id(value) in done else done.setdefault(id(value), _map_value(value, function))
        if moved is not value:
            setattr(result, name, moved)
    return result


def _map_value(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Distribution | Transform):
        return map_tensors(value, function)
    if isinstance(value, list) and all(isinstance(item, Transform) for item in value):
        return [map_tensors(item, function) for item in value]
    return function(value) if isinstance(value, Tensor) else value


class Inverse(Transform):
    """The inverse of a transform; unlike `transform.inv` it can be copied and pickled.

    Args:
        transform: The transform.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.domain: Any = transform.codomain
        self.codomain: Any = transform.domain
        self.bijective = transform.bijective

    @property
    def sign(self) -> Any:
        return self.transform.sign

    # Subclasses of `Transform` implement `_call` and `_inverse`; `test_inverse_transforms_survive_a_copy` pins it.
    def _call(self, x: Tensor) -> Tensor:
        return self.transform.inv(x)  # pyright: ignore[reportReturnType]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform(y)  # pyright: ignore[reportReturnType]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.transform.log_abs_det_jacobian(y, x)

    def forward_shape(self, shape: Any) -> Any:
        return self.transform.inverse_shape(shape)

    def inverse_shape(self, shape: Any) -> Any:
        return self.transform.forward_shape(shape)


def tensors_in(holder: Any, prefix: str = "") -> dict[str, tuple[Any, Tensor]]:
    """Returns the tensors inside a distribution by path, each with the object that holds it."""
    if isinstance(holder, _INVERSE):
        return {} if holder.inv is None else tensors_in(holder.inv, f"{prefix}inv.")  # None in a deep copy
    result: dict[str, tuple[Any, Tensor]] = {}
    seen: set[int] = set()
    for name, value in vars(holder).items():
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            result[prefix + name] = (holder, value)
        elif isinstance(value, Distribution | Transform) and not (isinstance(value, _INVERSE) and value.inv is holder):
            result |= tensors_in(value, f"{prefix}{name}.")
        elif isinstance(value, list) and all(isinstance(item, Transform) for item in value):
            for i, item in enumerate(value):
                result |= tensors_in(item, f"{prefix}{name}.{i}.")
    return result


def parameters_in(distribution: Distribution, prefix: str = "") -> dict[str, nn.Parameter]:
    """Returns the parameters that a distribution was built from, by the path of the argument.

    Raises:
        LiftError: A tensor was computed from learnable tensors, so the distribution cannot be rebuilt from them.
    """
    if not any(tensor.requires_grad for _, tensor in tensors_in(distribution).values()):
        return {}
    distribution = copy.copy(distribution)  # its lazy properties are then cached in the copy
    for names in ARGUMENTS.get(type(distribution), ()):
        values = {name: argument(distribution, name) for name in names}
        parts = {name: value for name, value in values.items() if isinstance(value, Distribution)}
        if parts and not _learnt_transforms(values.get("transforms", [])):
            return {path: p for name, part in parts.items() for path, p in parameters_in(part, f"{prefix}{name}.").items()}
        learnt = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.requires_grad}
        for leaves in product(*(_leaves(value) for value in learnt.values())):
            found = dict(zip(learnt, leaves, strict=True))
            if found and _builds(type(distribution), {**values, **found}, values):
                return {prefix + name: leaf for name, leaf in found.items()}
    raise LiftError(
        f"An energy cannot follow the learnable tensors of this {type(distribution).__name__}: a tensor was computed from others that "
        "require a gradient, is no `nn.Parameter` or has changed since, or the arguments of the class are unknown. Build the distribution "
        "from parameters directly, call `.detach()` on the tensor to hold it constant, or lift a module whose `forward(x)` builds the "
        "distribution and returns `-log_prob(x)`."
    )


def _builds(cls: type[Distribution], arguments: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Returns whether building a class from arguments gives these values with an equal graph."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            fresh = cls(**arguments, validate_args=False)
            pairs = [(getattr(fresh, name), value) for name, value in values.items() if isinstance(value, Tensor) and value.requires_grad]
        return all(_graph(a) == _graph(b) and _same_numbers(a.expand_as(b), b) for a, b in pairs)
    except (ValueError, RuntimeError, TypeError, IndexError):  # a wrong shape
        return False


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    """Returns whether two tensors are equal, or for views of a parameter whether they are the same view."""
    if isinstance(_graph(b), int):
        strides = [[s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in (a, b)]
        return a.data_ptr() == b.data_ptr() and strides[0] == strides[1]
    return torch.equal(a, b)


def _learnt_transforms(transforms: list[Transform]) -> bool:
    return any(tensor.requires_grad for transform in transforms for _, tensor in tensors_in(transform).values())


def _leaves(tensor: Tensor) -> list[nn.Parameter]:
    """Returns the parameters that a tensor was computed from; none if it has other leaves or a large graph."""
    if tensor.is_leaf:
        return [tensor] if isinstance(tensor, nn.Parameter) else []
    nodes = list(_nodes(tensor))
    leaves = {id(leaf): leaf for node in nodes if (leaf := getattr(node, "variable", None)) is not None}
    small = len(nodes) < _LARGEST_GRAPH and len(leaves) <= 2
    return list(leaves.values()) if small and all(isinstance(leaf, nn.Parameter) for leaf in leaves.values()) else []


def _nodes(tensor: Tensor) -> Iterator[Any]:
    todo: list[Any] = [tensor.grad_fn]
    for _ in range(_LARGEST_GRAPH):
        if todo:
            node = todo.pop()
            yield node
            todo.extend(inner for inner, _ in node.next_functions if inner is not None)


def _graph(tensor: Tensor) -> Any:
    """Returns the autograd graph of a tensor as nested tuples that can be compared.

    Views are left out: after an in-place write to the parameter, any view becomes `AsStridedBackward0`.
    """

    def as_tuple(node: Any) -> Any:
        if node is None or hasattr(node, "variable"):
            return None if node is None else id(node.variable)
        inner = tuple(as_tuple(part) for part, _ in node.next_functions)
        return inner[0] if node.name() in _VIEWS else (node.name(), *inner)

    return id(tensor) if tensor.is_leaf else as_tuple(tensor.grad_fn)


def inherits(distribution: Distribution, cls: type[D], method: str) -> TypeGuard[D]:
    """Returns whether a distribution is one of a class of torch, or of a subclass that does not override a method or property."""
    return isinstance(distribution, cls) and getattr(type(distribution), method) is getattr(cls, method)


def support_of(distribution: Distribution) -> Support:
    """Returns the support of a continuous distribution; None for all of R^n.

    Torch's own is wider for a `TransformedDistribution` over a part of the line, such as a shifted uniform one, and that of `VonMises` is
    the line, on which it has no integral: its points are angles.
    """
    if isinstance(distribution, VonMises):
        return circle
    if inherits(distribution, Independent, "support"):
        return support_of(distribution.base_dist)
    if inherits(distribution, MixtureSameFamily, "support"):
        return _hull(support_of(distribution.component_distribution), len(distribution.batch_shape))
    if inherits(distribution, TransformedDistribution, "support"):
        return _image(distribution)
    return plain(distribution.support)  # pyright: ignore[reportArgumentType]


def _hull(support: Support, axis: int) -> Support:
    """Returns the interval that holds the intervals of all components, which have an axis of their parameters."""
    ends = ends_of(support)
    if ends is None or not any(isinstance(end, Tensor) and end.ndim > axis for end in ends):
        return support
    low, high = ends
    low = low.amin(axis) if isinstance(low, Tensor) and low.ndim > axis else low
    return interval(low, high.amax(axis) if isinstance(high, Tensor) and high.ndim > axis else high)


def _image(distribution: Any) -> Support:
    """Returns the image of an interval under transforms of single numbers; else the codomain of the last transform."""
    found: Any = ends_of(support_of(distribution.base_dist))
    transforms: list[Any] = distribution.transforms
    if found is None or not all(some.bijective and some.domain.event_dim == some.codomain.event_dim == 0 for some in transforms):
        return plain(distribution.support)  # pyright: ignore[reportArgumentType]
    like = next((end for end in found if isinstance(end, Tensor)), torch.zeros(()))
    low, high = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in found)
    for transform in transforms:
        domain, ends = ends_of(transform.domain), ends_of(transform.codomain)
        whole = domain is not None and bool((low == domain[0]).all() and (high == domain[1]).all())
        ends = ends if whole and ends is not None else (transform(low), transform(high))  # torch's logits are finite at 0 and 1
        low, high = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in ends)
        low, high = torch.minimum(low, high), torch.maximum(low, high)
    if bool((low.isnan() | high.isnan()).any()):
        return plain(distribution.support)  # pyright: ignore[reportArgumentType]
    return interval(low, high)
