"""Constructor arguments, tensors, supports and seeded draws of torch distributions."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution, ExpTransform, Independent, MixtureSameFamily, Transform, TransformedDistribution, VonMises
from torch.utils._python_dispatch import TorchDispatchMode

from composable_energy.supports.sets import Support, circle, ends_of, interval, plain

D = TypeVar("D", bound=Distribution)

_BY_PARAMETERS = """Beta Cauchy Chi2 Dirichlet Exponential FisherSnedecor Gamma Gumbel HalfCauchy HalfNormal InverseGamma
    Kumaraswamy Laplace LogNormal LowRankMultivariateNormal Normal Pareto StudentT VonMises Weibull"""
ARGUMENTS: Mapping[type[Distribution], tuple[str, ...]] = {
    **{cls: tuple(cls.arg_constraints) for cls in (getattr(distributions, name) for name in _BY_PARAMETERS.split())},
    **dict.fromkeys((distributions.Bernoulli, distributions.Categorical, distributions.OneHotCategorical), ("logits",)),
    **dict.fromkeys((distributions.Binomial, distributions.NegativeBinomial), ("total_count", "logits")),
    distributions.Geometric: ("probs",),
    distributions.Poisson: ("rate",),
    distributions.MultivariateNormal: ("loc", "scale_tril"),
    distributions.Uniform: ("low", "high"),
    Independent: ("base_distribution", "reinterpreted_batch_ndims"),
    MixtureSameFamily: ("mixture_distribution", "component_distribution"),
    TransformedDistribution: ("base_distribution", "transforms"),
}
"""The names of arguments that rebuild a distribution, for each known class."""

_INVERSE: Any = type(ExpTransform().inv)
_HOLDERS: Any = (Distribution, Transform)


def argument(distribution: Distribution, name: str) -> Any:
    """Returns the value of an argument; a matrix that was broadcast over a batch is one matrix again."""
    value = getattr(distribution, "base_dist" if name == "base_distribution" else name)
    if name in ("scale_tril", "cov_factor", "cov_diag"):
        while value.ndim > 1 and len(value) > 1 and value.stride(0) == 0:
            value = value[0]
    return value


def map_tensors(holder: Any, function: Callable[[Tensor], Tensor] | None = None) -> Any:
    """Returns a copy of a distribution or transform with a function applied to all tensors inside; another value as it is. A continuous
    distribution with known arguments is rebuilt without validation; constructors of discrete ones would normalise again."""
    if not isinstance(holder, _HOLDERS):
        if isinstance(holder, list) and all(isinstance(item, Transform) for item in holder):
            return [map_tensors(item, function) for item in holder]
        return function(holder) if function is not None and isinstance(holder, Tensor) else holder
    cls: Any = type(holder)
    if cls in ARGUMENTS and "logits" not in ARGUMENTS[cls]:
        arguments = dict[str, Any]()
        for name in ARGUMENTS[cls]:
            arguments[name] = map_tensors(argument(holder, name), function)
        return cls(**arguments, validate_args=False)
    if isinstance(holder, _INVERSE):
        return Inverse(map_tensors(holder.inv, function))
    result, done = copy.copy(holder), {}
    for name, value in vars(result).items():
        if (moved := done[id(value)] if id(value) in done else done.setdefault(id(value), map_tensors(value, function))) is not value:
            setattr(result, name, moved)
    return result


class Inverse(_INVERSE):
    """The inverse of a transform that can be copied and pickled: torch's own loses the transform."""

    def __getstate__(self) -> dict[str, Any]:
        return vars(self).copy()


def tensors_in(holder: Any, prefix: str = "") -> dict[str, tuple[Any, Tensor]]:
    """Returns the tensors inside a distribution by path, each with the object that holds it."""
    if isinstance(holder, _INVERSE):
        return {} if holder.inv is None else tensors_in(holder.inv, f"{prefix}inv.")  # None in a copy of torch's own
    result: dict[str, tuple[Any, Tensor]] = {}
    seen: set[int] = set()
    for name, value in vars(holder).items():
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            result[prefix + name] = (holder, value)
        elif isinstance(value, Distribution | Transform) and name != "_inv":  # whose inverse is the holder
            result |= tensors_in(value, f"{prefix}{name}.")
        elif isinstance(value, list) and all(isinstance(item, Transform) for item in value):
            for i, item in enumerate(value):
                result |= tensors_in(item, f"{prefix}{name}.{i}.")
        elif isinstance(value, nn.Module):
            result |= {f"{prefix}{name}.{path}": (value, parameter) for path, parameter in value.named_parameters()}
    return result


def inherits(distribution: Distribution, cls: type[D], method: str) -> TypeGuard[D]:
    """Returns whether a distribution is one of a class of torch, or of a subclass that does not override a method or property."""
    return isinstance(distribution, cls) and getattr(type(distribution), method) is getattr(cls, method)


def support_of(distribution: Distribution) -> Support:
    """Returns the support of a continuous distribution; None for all of R^n. Torch's own is wider for a `TransformedDistribution` over a
    part of the line, such as a shifted uniform one, and that of `VonMises` is the line, on which it has no integral: its points are
    angles."""
    if isinstance(distribution, VonMises):
        return circle
    if inherits(distribution, Independent, "support"):
        return support_of(distribution.base_dist)
    if inherits(distribution, MixtureSameFamily, "support"):
        # The interval that holds those of all components, which have an axis of their parameters.
        support, axis = support_of(distribution.component_distribution), len(distribution.batch_shape)
        if (ends := ends_of(support)) is None or not any(isinstance(end, Tensor) and end.ndim > axis for end in ends):
            return support
        low, high = ends
        low = low.amin(axis) if isinstance(low, Tensor) and low.ndim > axis else low
        return interval(low, high.amax(axis) if isinstance(high, Tensor) and high.ndim > axis else high)
    if inherits(distribution, TransformedDistribution, "support"):
        return _image(distribution)
    return plain(distribution.support)  # pyright: ignore[reportArgumentType]


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


@torch.no_grad()
def seeded_draws(distribution: Distribution, count: int, device: torch.device, seed: int) -> Tensor | None:
    """Returns independent draws; None if the distribution has no method for them. Torch's global random state stays."""
    with _Seeded(torch.Generator(device).manual_seed(seed)):
        try:
            return distribution.sample((count,))
        except NotImplementedError:
            return None


class _Seeded(TorchDispatchMode):
    """Random numbers of torch come from a generator: those of this thread inside, not from the state that the caller's code uses."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if (random := torch.Tag.nondeterministic_seeded in func.tags) and "generator" not in str(func._schema):
            func = func.overloadpacket.generator
        return func(*args, **{**(kwargs or {}), **({"generator": self.generator} if random else {})})
