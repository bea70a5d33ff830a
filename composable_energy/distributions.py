r"""Torch distributions as energies: $E(x) = -\log p(x)$, infinite outside the support."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform

from composable_energy.energy import Energy, zeros
from composable_energy.errors import OptionError

__all__ = ["DistributionEnergy"]


class DistributionEnergy(Energy):
    r"""The energy $-\log p(x)$ of a torch distribution; axes of its batch shape are independent axes of a point.

    Args:
        distribution: The distribution; a point has its batch shape followed by its event shape. It is copied; its tensors are shared.
        name: How it is written; the class name of the distribution if empty.
    """

    def __init__(self, distribution: Distribution, *, name: str = "") -> None:
        super().__init__()
        if not isinstance(name, str):
            raise OptionError(f"name must be text, got {name!r}.")
        self.name = name or type(distribution).__name__
        self.distribution = _unvalidated(distribution)
        self.event_shape = distribution.batch_shape + distribution.event_shape

    def forward(self, x: Tensor) -> Tensor:
        inside = self.distribution.support.check(x)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        energies = torch.where(inside, -self.distribution.log_prob(x), torch.inf)
        energies = energies.flatten(1).sum(1) if energies.ndim > 1 else energies
        return energies + zeros(x) if x.requires_grad and not energies.requires_grad else energies  # a uniform one is flat, but samples

    def config(self) -> dict[str, Any]:
        return {"distribution": self.distribution, "name": self.name}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistributionEnergy:
        self.distribution = _mapped(self.distribution, fn)
        return super()._apply(fn, recurse)


def _unvalidated(distribution: Distribution) -> Distribution:
    """A point outside the support has energy infinity and is no error; parts of a distribution check on their own account."""
    result = copy.copy(distribution)
    result._validate_args = False
    for name, value in vars(result).items():
        if isinstance(value, Distribution):
            setattr(result, name, _unvalidated(value))
    return result


def _mapped(holder: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Returns a copy of a distribution with a function applied to its tensors, also in the distributions and transforms inside."""
    if isinstance(holder, _InverseTransform):  # does not survive a copy of its own; what it inverts does
        return _mapped(holder.inv, fn).inv
    result = copy.copy(holder)
    for name, value in vars(result).items():
        moved: Any = value
        if isinstance(value, Distribution | Transform) and name != "_inv":
            moved = _mapped(value, fn)
        elif isinstance(value, list) and all(isinstance(item, Transform) for item in value):
            moved = [_mapped(item, fn) for item in value]
        elif isinstance(value, Tensor):
            moved = fn(value)
        if moved is not value:
            setattr(result, name, moved)
    return result
