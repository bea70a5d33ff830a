r"""Arithmetic of energies with shape $(B,)$ that may be infinite: infinities stay, and no gradient becomes NaN. And estimates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def scale(weight: float | Tensor, energies: Tensor) -> Tensor:
    """Returns weighted energies; infinite ones stay infinite at weight 0, and give a learnable weight no gradient."""
    if not isinstance(weight, Tensor):
        if weight == 0:
            return torch.where(energies.isinf(), energies.detach(), 0.0 * energies)
        return energies if weight == 1 else weight * energies
    weight, infinite = weight.to(energies.device), energies.isinf()
    limit = torch.where(weight.detach() < 0, -energies.detach(), energies.detach())
    return torch.where(infinite, limit, weight * torch.where(infinite, 0.0, energies))


def add(energies: Sequence[Tensor], *, signed: bool = False) -> Tensor:
    r"""Returns the sum of energies; if a term may be $-\infty$ (`signed`), it is $\infty$ wherever another term is."""
    total = energies[0]
    for energy in energies[1:]:
        total = total + energy
    if not signed or len(energies) == 1:
        return total
    return torch.where((torch.stack(list(energies)) == torch.inf).any(0), torch.inf, total)


def subtract(energies: Tensor, base: Tensor) -> Tensor:
    r"""Returns energies minus those of a base, both with shape $(B,)$; 0 where the base is infinite."""
    return torch.where(base.isinf(), 0.0, energies - base)


def zeros(x: Tensor) -> Tensor:
    """Returns zeros with shape $(B,)$ and zero gradient at any points, also infinite ones."""
    total = x.flatten(1).sum(1) if x.ndim > 1 else x
    return torch.where(torch.ones_like(total, dtype=torch.bool), torch.zeros_like(total), total)


def mixture(branches: Tensor) -> Tensor:
    r"""Returns $-\log \sum_k e^{-E_k}$ of energies with shape $(K, B)$; where all are infinite it is infinite with zero gradient."""
    infinite = (lowest := branches.detach().amin(0)).isinf()
    return torch.where(infinite, lowest, -torch.logsumexp(-torch.where(infinite, 0.0, branches), 0))


def unsqueeze_to(values: Tensor, x: Tensor) -> Tensor:
    """Returns values with shape $(B,)$ as $(B, 1, ..., 1)$, with as many axes as the points, for broadcasting."""
    return values.view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; that of an exact number is 0."""

    value: float
    standard_error: float = 0.0

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" +- {self.standard_error:.2g}" if self.standard_error else "")
