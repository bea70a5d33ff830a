"""Supports of torch distributions, as small as their structure shows."""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution, VonMises

from composable_energy.supports import Support, circle, ends_of, interval, plain

D = TypeVar("D", bound=Distribution)


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
