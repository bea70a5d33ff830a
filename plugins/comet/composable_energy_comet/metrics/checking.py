"""What metrics are given: label maps, tables of codes and of factors, whole numbers. All is judged in float64 on the CPU."""

from __future__ import annotations

import importlib
from operator import index
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import DtypeError, ExtraNotInstalled, OptionError, ShapeError

__all__ = ["Array", "as_tensor", "codes_and_factors", "extra", "labels", "table", "varying", "whole"]

Array: TypeAlias = Tensor | np.ndarray


def extra(module: str) -> Any:
    """Imports a module of the extra `metrics`.

    Raises:
        ExtraNotInstalled: It is not there.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraNotInstalled(
            f"This metric needs {module.partition('.')[0]}, which is not installed: pip install 'composable-energy[metrics]'."
        ) from error


def whole(name: str, value: Any, least: int = 1) -> int:
    """Returns a whole number; raises an OptionError if it is none or below the least."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        raise OptionError(f"{name} must be a whole number, got {value!r}.") from None
    if number < least:
        raise OptionError(f"{name} must be at least {least}, got {number}.")
    return number


def as_tensor(name: str, values: Any) -> Tensor:
    """Returns an array as a tensor without a gradient on the CPU; raises a DtypeError if it is none, or not of numbers."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biufc":
        got = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise DtypeError(f"`{name}` must be a tensor or an array of numbers, got {got}; use torch.as_tensor.")
    return torch.from_numpy(np.array(values))  # a copy: an array may be read-only, or run backwards


def labels(name: str, values: Any) -> Tensor:
    """Returns label maps as int64, with their own shape.

    Raises:
        DtypeError: They are no whole numbers.
        ShapeError: Their shape is neither $(B, H, W)$ nor $(B, P)$.
    """
    maps = as_tensor(name, values)
    if maps.is_floating_point() or maps.is_complex() or maps.dtype == torch.bool:
        raise DtypeError(
            f"`{name}` must hold one whole number for each pixel, got {maps.dtype}; of scores (B, K, H, W) take `scores.argmax(1)`, "
            "of one mask of True and False `mask.long()`."
        )
    if maps.ndim not in (2, 3):
        hint = "; write `.squeeze(1)`" if maps.ndim == 4 and maps.shape[1] == 1 else ""
        raise ShapeError(f"`{name}` must have shape (B, H, W) or (B, P), one label for each pixel, got {tuple(maps.shape)}{hint}.")
    return maps.long()


def table(name: str, values: Any) -> Tensor:
    """Returns a table as float64: one row for each picture.

    Raises:
        DtypeError: It holds no numbers.
        ShapeError: It is no table, or has fewer than two rows or no column.
        OptionError: A number is not finite.
    """
    rows = as_tensor(name, values)
    if rows.is_complex() or rows.dtype == torch.bool:
        raise DtypeError(f"`{name}` must hold real numbers, got {rows.dtype}; write `.double()`.")
    if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1]:
        hint = "; write `.flatten(1)`" if rows.ndim > 2 else ""
        raise ShapeError(f"`{name}` must be a table with one row for each picture, two rows at least, got {tuple(rows.shape)}{hint}.")
    rows = rows.double()
    if not rows.isfinite().all():
        row = int((~rows.isfinite()).any(1).nonzero()[0])
        raise OptionError(f"`{name}` must be finite, got {rows[row].tolist()[:8]} in row {row}.")
    return rows


def codes_and_factors(codes: Any, factors: Any, *, levels: bool) -> tuple[Tensor, Tensor]:
    """Returns codes with shape $(N, D)$, and factors with shape $(N, F)$ none of which is constant.

    Args:
        codes: The codes.
        factors: The factors.
        levels: Whether factors are whole numbers, which only name levels; they come back as int64, $0$ to $L_f - 1$ in each column.

    Raises:
        ShapeError: One is no table, or they have not as many rows.
        DtypeError: One holds no numbers, or the factors no whole ones where these are asked for.
        OptionError: A number is not finite, or a factor is constant.
    """
    codes, raw = table("codes", codes), as_tensor("factors", factors)
    if levels and (raw.is_floating_point() or raw.is_complex() or raw.dtype == torch.bool):
        raise DtypeError(
            f"`factors` must be whole numbers, one for each level, got {raw.dtype}; cut numbers in [0, 1] into four levels by "
            "`(factors * 4).long().clamp(max=3)`."
        )
    rows = table("factors", factors)
    if len(codes) != len(rows):
        raise ShapeError(f"`codes` and `factors` must have a row for each picture, got {tuple(codes.shape)} and {tuple(rows.shape)}.")
    varying("factors", rows)
    if levels:
        rows = torch.stack([column.unique(return_inverse=True)[1] for column in raw.unbind(1)], 1)
    return codes, rows


def varying(name: str, rows: Tensor) -> None:
    """Raises an OptionError if a column is constant: nothing can tell it."""
    constant = rows.amax(0) == rows.amin(0)
    if constant.any():
        column = int(constant.nonzero()[0])
        raise OptionError(f"Column {column} of `{name}` is {rows[0, column].item():g} in all {len(rows)} rows; leave it out.")
