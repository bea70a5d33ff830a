"""Checks the arguments of metrics, and converts them to float64 or int64 on the CPU."""

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError

Array: TypeAlias = Tensor | np.ndarray


def as_tensor(name: str, values: Any) -> Tensor:
    """Returns an array as a tensor without a graph on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biufc":
        got = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise DtypeError(f"`{name}` must be a tensor or an array of numbers, got {got}; use torch.as_tensor.")
    return torch.from_numpy(np.array(values))  # a copy: an array may be read-only or have negative strides


def as_labels(name: str, values: Any) -> Tensor:
    """Returns label maps as int64, with the same shape."""
    if (maps := as_tensor(name, values)).is_floating_point() or maps.is_complex() or maps.dtype == torch.bool:
        way = "for scores (B, K, H, W) write `scores.argmax(1)`, for one boolean mask `mask.long()`."
        raise DtypeError(f"`{name}` must hold one whole number for each pixel, got {maps.dtype}; {way}")
    if maps.ndim not in (2, 3):
        hint = "; write `.squeeze(1)`" if maps.ndim == 4 and maps.shape[1] == 1 else ""
        raise ShapeError(f"`{name}` must have shape (B, H, W) or (B, P), one label for each pixel, got {tuple(maps.shape)}{hint}.")
    return maps.long()


def as_table(name: str, values: Any) -> Tensor:
    """Returns a table with one row for each picture, as float64."""
    rows = as_tensor(name, values)
    if rows.is_complex() or rows.dtype == torch.bool:
        raise DtypeError(f"`{name}` must hold real numbers, got {rows.dtype}; write `.double()`.")
    if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1]:
        hint = "; write `.flatten(1)`" if rows.ndim > 2 else ""
        raise ShapeError(f"`{name}` must be a table with one row for each picture, at least two rows, got {tuple(rows.shape)}{hint}.")
    if not (rows := rows.double()).isfinite().all():
        row = int((~rows.isfinite()).any(1).nonzero()[0])
        raise OptionError(f"`{name}` must be finite, got {rows[row].tolist()[:8]} in row {row}.")
    return rows


def check_codes_and_factors(codes: Any, factors: Any, *, levels: bool) -> tuple[Tensor, Tensor]:
    """Returns codes with shape $(N, D)$, and factors with shape $(N, F)$ without constant columns. With `levels` factors must be whole
    numbers, used as names of levels; they are returned as int64, $0$ to $L_f - 1$ in each column."""
    codes, raw = as_table("codes", codes), as_tensor("factors", factors)
    if levels and (raw.is_floating_point() or raw.is_complex() or raw.dtype == torch.bool):
        way = "bin numbers in [0, 1] into four levels by `(factors * 4).long().clamp(max=3)`."
        raise DtypeError(f"`factors` must be whole numbers, one for each level, got {raw.dtype}; {way}")
    if len(codes) != len(rows := as_table("factors", factors)):
        raise ShapeError(f"`codes` and `factors` must have one row for each picture, got {tuple(codes.shape)} and {tuple(rows.shape)}.")
    if (constant := rows.amax(0) == rows.amin(0)).any():
        column = int(constant.nonzero()[0])
        raise OptionError(f"Column {column} of `factors` is {rows[0, column].item():g} in all {len(rows)} rows; leave it out.")
    if levels:
        rows = torch.stack([column.unique(return_inverse=True)[1] for column in raw.unbind(1)], 1)
    return codes, rows
