"""States and infos of chains as tensors with one row for each chain: rows are taken, joined, put back, and checked for finite numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from composable_energy.errors import ShapeError
from composable_energy.sampling.sampler import Info, State

S = TypeVar("S", bound=State)


def take(state: S, rows: Tensor | slice) -> S:
    """Returns some rows of a state, given by their places or by a mask."""
    rows = rows if isinstance(rows, slice) else rows.to(state.x.device)
    return replace(state, **{name: value[rows] for name, value in _per_chain(state).items()})


def join(states: Sequence[S]) -> S:
    """Returns states one after another; shared fields come from the first state.

    Raises:
        ShapeError: A tensor of a state has another number of rows, and is not declared as shared.
    """
    tensors = [_per_chain(state) for state in states]
    if len(states) == 1:
        return states[0]
    return replace(states[0], **{name: torch.cat([some[name] for some in tensors]) for name in tensors[0]})


def put(state: S, rows: Tensor, new: S) -> S:
    """Returns a state with other rows in some places; shared fields come from the new one."""
    rows = rows.to(state.x.device)
    return replace(new, **{name: value.index_copy(0, rows, getattr(new, name)) for name, value in _per_chain(state).items()})


def all_finite(state: State) -> bool:
    """Returns whether points, energies and gradients are finite; where they are it takes one pass and one synchronisation."""
    if state.x.dtype in (torch.float32, torch.float64):
        products = torch.dot(state.x.reshape(-1), state.grad.reshape(-1))  # 0 times infinity is not finite either
        if math.isfinite(products.add_(state.energy.sum()).item()):
            return True
    return bool(finite_rows(state).all())


def finite_rows(state: State) -> Tensor:
    """Returns which chains have a finite point, energy and gradient, with shape $(B,)$."""
    both = state.x.isfinite() & state.grad.isfinite()
    return both.flatten(1).all(1) & state.energy.isfinite() if both.ndim > 1 else both & state.energy.isfinite()


def merge_infos(infos: Sequence[Info], counts: Sequence[int], sampler: str) -> Info:
    """Returns one info for several batches. Means stay tensors, so that no step waits for the device; see `to_floats`.

    Args:
        infos: The info of each batch.
        counts: The number of chains of each.
        sampler: The name of the sampler, for errors.

    Raises:
        ShapeError: A scalar does not have one number for each chain.
    """
    rates = [info.acceptance.nan_to_num(0.0) for info in infos if info.acceptance is not None]
    scalars: dict[str, float | Tensor] = {}
    for name in dict.fromkeys(name for info in infos for name in info.scalars):
        parts = [(count, info.scalars[name]) for count, info in zip(counts, infos, strict=True) if name in info.scalars]
        scalars[name] = _mean(f"The scalar {name!r} of {sampler}", parts)
    return Info(None if not rates else rates[0] if len(rates) == 1 else torch.cat(rates), scalars)


def to_floats(values: Sequence[float | Tensor]) -> list[float]:
    """Returns scalars as numbers, those on a device by one transfer."""
    tensors = [value.double() for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]


def weighted_mean(parts: Sequence[tuple[int, float]]) -> float:
    """Returns the mean of (weight, number) pairs, without numbers that are NaN; equal numbers stay as they are, to the last bit."""
    known = [(weight, value) for weight, value in parts if weight and not math.isnan(value)]
    if not known:
        return math.nan
    if all(value == known[0][1] for _, value in known):
        return known[0][1]
    return sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)


def _mean(what: str, parts: Sequence[tuple[int, float | Tensor]]) -> float | Tensor:
    """Returns the mean of a scalar over all chains, from (number of chains, value) pairs of batches."""
    if len(parts) == 1 and not (isinstance(parts[0][1], Tensor) and parts[0][1].ndim):
        return parts[0][1]
    rows: list[Tensor] = []
    numbers: list[tuple[int, float]] = []
    for count, value in parts:
        if isinstance(value, Tensor) and value.ndim:
            if value.shape != (count,):
                raise ShapeError(
                    f"{what} has shape {tuple(value.shape)} for {count} chains: give a number, or a tensor of shape ({count},), of which "
                    "the mean is taken."
                )
            rows.append(value.double())
        else:
            numbers.append((count, float(value)))
    return torch.cat(rows).nanmean() if rows else weighted_mean(numbers)


def _per_chain(state: State) -> dict[str, Tensor]:
    """Returns the tensors of a state that have one row for each chain.

    Raises:
        ShapeError: A tensor has another number of rows, and is not declared as shared.
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
