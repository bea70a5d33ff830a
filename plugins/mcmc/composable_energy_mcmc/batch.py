"""Operations on batches: a sum for each point, a number for each point broadcast over its coordinates, rows of two states."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.sampling import State

__all__ = ["finite_rows", "flatten_points", "select", "sum_of_each"]


def sum_of_each(values: Tensor) -> Tensor:
    """Returns sums over all axes but the first, with shape $(B,)$; in float32 at least."""
    return values.reshape(len(values), -1).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))


def flatten_points(x: Tensor) -> Tensor:
    """Returns points as vectors, with shape $(B, d)$; a point that is a single number becomes a vector of one."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def select(mask: Tensor, proposal: State, state: State) -> State:
    """Returns the rows of `proposal` where the mask, with shape $(B,)$, is true, and those of `state` elsewhere."""
    wide = unsqueeze_to(mask, state.x)
    x, grad = torch.where(wide, proposal.x, state.x), torch.where(wide, proposal.grad, state.grad)
    return State(x, torch.where(mask, proposal.energy, state.energy), grad)


def finite_rows(state: State) -> Tensor:
    """Returns which chains have a finite point, energy and gradient, with shape $(B,)$."""
    return state.energy.isfinite() & (state.grad.isfinite() & state.x.isfinite()).reshape(len(state.x), -1).all(1)
