"""The diagnostics of a step, merged over batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from composable_energy.errors import ShapeError
from composable_energy.sampling.layout import Chunk, Layout
from composable_energy.sampling.sampler import Info


def merge_infos(infos: Sequence[tuple[Chunk, Info]], layout: Layout) -> Info:
    """Returns one info for all chains of a process. Means stay tensors, so that no step waits for the device; see `to_floats`.

    Args:
        infos: The batches with active chains, and the info of each.
        layout: The layout of the call.

    Raises:
        ShapeError: A scalar does not have one number for each chain.
    """
    if len(infos) == 1 and len(infos[0][0].active.x) == len(layout.own):
        info = infos[0][1]
        if not any(isinstance(value, Tensor) and value.ndim for value in info.scalars.values()):
            return info if info.acceptance is None else Info(info.acceptance.nan_to_num(0.0), info.scalars)
    rates = [(chunk, info.acceptance.nan_to_num(0.0)) for chunk, info in infos if info.acceptance is not None]
    names = dict.fromkeys(name for _, info in infos for name in info.scalars)
    parts = {name: [(len(chunk.active.x), info.scalars[name]) for chunk, info in infos if name in info.scalars] for name in names}
    scalars = {name: _mean(f"The scalar {name!r} of {type(layout.sampler).__name__}", values) for name, values in parts.items()}
    return Info(_scatter(rates, layout.own) if rates else None, scalars)


def _scatter(parts: Sequence[tuple[Chunk, Tensor]], own: range) -> Tensor:
    """Returns a number for each chain of a process from those of the active ones; NaN for the others."""
    out = parts[0][1].new_full((len(own),), math.nan)
    for chunk, values in parts:
        out[chunk.ids.start - own.start : chunk.ids.stop - own.start][... if chunk.rows is None else chunk.rows] = values
    return out


def to_floats(values: Sequence[float | Tensor]) -> list[float]:
    """Returns scalars as numbers, those on a device by one transfer."""
    tensors = [value.double() for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]


def _mean(what: str, parts: Sequence[tuple[int, float | Tensor]]) -> float | Tensor:
    """Returns the mean of a scalar over all chains, from (number of chains, value) pairs of batches."""
    if len(parts) == 1 and isinstance(parts[0][1], Tensor) and not parts[0][1].ndim:
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
            numbers.append((count, float(value) if isinstance(value, Tensor) else value))
    return torch.cat(rows).nanmean() if rows else weighted_mean(numbers)


def weighted_mean(parts: Sequence[tuple[int, float]]) -> float:
    """Returns the mean of (weight, number) pairs, without numbers that are NaN; equal numbers stay as they are, to the last bit."""
    known = [(weight, value) for weight, value in parts if weight and not math.isnan(value)]
    if not known:
        return math.nan
    if all(value == known[0][1] for _, value in known):
        return known[0][1]
    return sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)
