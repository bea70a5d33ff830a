"""States of some of the chains: rows of them, and several joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from composable_energy.errors import ShapeError
from composable_energy.sampling.sampler import State

__all__ = ["all_finite", "finite_rows", "join", "per_chain", "take", "weighted_mean"]

S = TypeVar("S", bound=State)


def take(state: S, rows: Tensor) -> S:
    """Returns some rows of a state."""
    return replace(state, **{name: value[rows] for name, value in per_chain(state).items()})


def join(states: Sequence[S], order: Tensor | None = None) -> S:
    """Returns states one after another, with the rows put in some order; what is shared comes from the first."""
    if len(states) == 1 and order is None:
        return states[0]
    rows = {name: torch.cat([getattr(state, name) for state in states]) for name in per_chain(states[0])}
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


def per_chain(state: State) -> dict[str, Tensor]:
    """Returns the tensors of a state that have one row for each chain.

    Raises:
        ShapeError: One has another number of rows, and is not declared to be shared.
    """
    found, count = {}, len(state.x)
    for field in fields(state):
        value = getattr(state, field.name)
        if not isinstance(value, Tensor) or not value.ndim or not field.metadata.get("per_chain", True):
            continue
        if len(value) != count:
            raise ShapeError(
                f"{type(state).__name__}.{field.name} has shape {tuple(value.shape)} in a state of {count} chains: a tensor has one row "
                f"for each chain. If all chains share it, write `{field.name}: Tensor = field(metadata={{'per_chain': False}})`."
            )
        found[field.name] = value
    return found


def weighted_mean(parts: Sequence[tuple[int, float]]) -> float:
    """Returns the mean of numbers with weights, without those that are NaN; equal numbers stay as they are, to the last bit."""
    known = [(weight, value) for weight, value in parts if weight and not math.isnan(value)]
    if not known:
        return math.nan
    if all(value == known[0][1] for _, value in known):
        return known[0][1]
    return sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)
