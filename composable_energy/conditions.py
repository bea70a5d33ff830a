"""Conditions: what an energy depends on besides the point, such as a label `y` or a noise level `sigma`.

A condition is a keyword parameter of `forward`. It reaches the energy as a tensor with one row for each point, whatever was bound:
a number, a tensor of one row for all, or one row for each. Bound rows belong to chains, so a batch of some of the chains says which
they are by the reserved condition `chains`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError, ShapeError
from composable_energy.sharing import remembered

__all__ = ["CHAINS", "Parameters", "bound_rows", "key_of", "method_parameters", "parameters_of", "rows_for"]

CHAINS = "chains"


class Parameters(NamedTuple):
    """The condition names of a function: all of them, those without a default, and whether it takes any other (`**conditions`)."""

    names: frozenset[str]
    required: frozenset[str]
    open: bool = False


@lru_cache(maxsize=512)
def method_parameters(method: Callable[..., object]) -> Parameters:
    """Returns the conditions of an unbound method, the parameters after `self` and the point."""
    return _keyword_parameters(method, 2)


def parameters_of(function: Callable[..., object]) -> Parameters:
    """Returns the conditions of a module or function; not cached, as a cache would keep alive what a function holds."""
    function = getattr(function, "_orig_mod", function)  # what `torch.compile` wrapped
    return _keyword_parameters(function.forward if isinstance(function, nn.Module) else function, 1)


def _keyword_parameters(function: Callable[..., object], skip: int) -> Parameters:
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):  # built-ins without a signature, such as torch.square
        return Parameters(frozenset(), frozenset())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return Parameters(
        frozenset(p.name for p in named),
        frozenset(p.name for p in named if p.default is p.empty),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def rows_for(name: str, value: object, x: Tensor, chains: slice | Tensor | None = None) -> Tensor:
    """Returns a bound condition as a tensor with one row for each point.

    Args:
        name: The condition's name, for messages.
        value: A number, a 0-d tensor, or a tensor whose first axis is 1 or the number of chains.
        x: The points, with shape $(B, *)$; the result has their device and, if real, their dtype.
        chains: Which chains the points are, when they are not all of them.

    Raises:
        ShapeError: The first axis is neither 1 nor the number of chains.
        OptionError: The value is not a number or tensor.
    """
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value, device=x.device, dtype=x.dtype if isinstance(value, float) else None)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OptionError(f"Condition {name} must be a number or a tensor, got {type(value).__name__}.") from error
    one_for_all = value.ndim == 0 or len(value) == 1
    rows = value if one_for_all or chains is None else value[chains]
    rows = rows.to(x) if rows.is_floating_point() else rows.to(x.device)
    if one_for_all and rows.shape[:1] != x.shape[:1]:
        return rows.expand(len(x), *rows.shape[1:])
    if len(rows) != len(x):
        raise ShapeError(
            f"Condition {name} has {len(value)} rows of shape {tuple(value.shape[1:])} for {len(x)} points; "
            "bind one value for all (a number, or a tensor whose first axis is 1) or one row for each point."
        )
    return rows


def bound_rows(name: str, value: object, x: Tensor, chains: slice | Tensor | None) -> Tensor:
    """Returns `rows_for`, the same tensor for all that are bound to one value in an expression."""
    key = "rows", name, (type(value), value) if isinstance(value, (int, float)) else id(value), id(x), id(chains)
    return remembered(key, (value, x, chains), lambda: rows_for(name, value, x, chains))


def key_of(conditions: Mapping[str, object]) -> Hashable:
    """Returns a key that is equal for equal small conditions; large tensors are compared by identity."""
    return tuple(sorted((name, _value_key(value)) for name, value in conditions.items()))


def _value_key(value: object) -> tuple[Hashable, ...]:
    if isinstance(value, Tensor):
        if value.numel() > 16 or value.requires_grad:
            return ("tensor", id(value))
        return ("value", tuple(value.shape), *value.detach().flatten().tolist())
    return ("value", (), value) if isinstance(value, (int, float)) else ("object", id(value))
