"""Conditions: what an energy depends on besides the point, such as a label `y` or a noise level `sigma`.

A condition is a keyword parameter of `forward`. It reaches the energy as a tensor with one row for each point, whatever was bound:
a number, a tensor of one row for all, or one row for each. Bound rows belong to chains, so a batch of some of the chains says which
they are by the reserved condition `chains`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.identity import equal
from composable_energy.memo import SharedModule, memoize

__all__ = [
    "CHAINS",
    "Parameters",
    "bound_rows",
    "check_names",
    "method_parameters",
    "own_copy",
    "parameters_of",
    "rows_for",
    "without_graph",
]

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


def parameters_of(function: Callable[..., object], positional: int = 1) -> Parameters:
    """Returns the conditions of a module or function; not cached, as a cache would keep alive what a function holds.

    Args:
        function: A module, or a function that is called with positional arguments and with conditions by name.
        positional: How many positional arguments come first.
    """
    if isinstance(function, SharedModule):
        function = function.module
    function = getattr(function, "_orig_mod", function)  # torch's own name for what `torch.compile` wrapped; there is no public one
    return _keyword_parameters(function.forward if isinstance(function, nn.Module) else function, positional)


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
    """Returns `rows_for`, the same tensor for all that are bound to equal values in an expression."""
    known: list[tuple[object, Tensor]] = memoize(("rows", name, id(x), id(chains)), (x, chains), list)
    # With the latest alone: thousands of candidates of `infer` would be compared in pairs.
    rows = next((rows for other, rows in known[-16:] if equal(other, value)), None)
    if rows is None:
        rows = rows_for(name, value, x, chains)
        known.append((value, rows))
    return rows


def check_names(owner: object, given: Mapping[str, Any], accepted: Iterable[str]) -> Mapping[str, Any]:
    """Returns what is given, if all of its names are accepted.

    Args:
        owner: An energy, for the message.
        given: Conditions or arguments by name.
        accepted: The names that there are.

    Raises:
        ExpressionError: A name is not among them.
    """
    unknown = sorted(set(given).difference(accepted))
    if unknown:
        names = sorted(set(accepted) - {CHAINS})
        near = get_close_matches(unknown[0], names, n=1)
        bound = any(unknown[0] in getattr(part, "values", {}) for part in getattr(owner, "modules", tuple)())
        way = f"did you mean {near[0]}?" if near else f"it takes {', '.join(names) or 'none'}."
        raise ExpressionError(f"{owner} takes no {unknown[0]}: {'it is bound already.' if bound else way}")
    return given


def own_copy(value: Any) -> Any:
    """Returns a condition that later changes of the caller's object do not reach; a tensor that is learnt remains connected to it.

    Arrays and lists of numbers become tensors, which can be compared.
    """
    if isinstance(value, np.ndarray | list | tuple):
        try:
            return torch.tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OptionError(f"A condition is a number or a tensor, got {type(value).__name__}: {error}") from error
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.requires_grad else value.detach().clone()


def without_graph(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns bound conditions as they are copied and pickled: tensors that were computed lose the graph behind them."""
    return {name: value.detach() if isinstance(value, Tensor) and not value.is_leaf else value for name, value in values.items()}
