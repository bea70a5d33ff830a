"""States of some of the chains: rows of them, and several joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from composable_energy.sampling.sampler import State

__all__ = ["all_finite", "finite_rows", "join", "take"]

S = TypeVar("S", bound=State)


def take(state: S, rows: Tensor) -> S:
    """Returns some rows of a state."""
    return replace(state, **{name: value[rows] for name, value in _per_chain(state).items()})


def join(states: Sequence[S], order: Tensor | None = None) -> S:
    """Returns states one after another, with the rows put in some order; what is shared comes from the first."""
    if len(states) == 1 and order is None:
        return states[0]
    rows = {name: torch.cat([getattr(state, name) for state in states]) for name in _per_chain(states[0])}
    return replace(states[0], **{name: value if order is None else value[order] for name, value in rows.items()})


def all_finite(state: State) -> bool:
    """Whether points, energies and gradients are finite: one pass and one synchronisation where they are."""
    if state.x.dtype in (torch.float32, torch.float64):
        total = torch.dot(state.x.reshape(-1), state.grad.reshape(-1))  # 0 times infinity is not finite either
        if math.isfinite(total.add_(state.energy.sum()).item()):
            return True
    return bool(finite_rows(state).all())


def finite_rows(state: State) -> Tensor:
    """Returns which chains have a finite point, energy and gradient, with shape $(B,)$."""
    both = state.x.isfinite() & state.grad.isfinite()
    return both.flatten(1).all(1) & state.energy.isfinite() if both.ndim > 1 else both & state.energy.isfinite()


def _per_chain(state: State) -> dict[str, Tensor]:
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    count = len(state.x)
    return {name: value for name, value in values.items() if isinstance(value, Tensor) and value.ndim and len(value) == count}
