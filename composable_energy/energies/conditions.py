"""Conditions of energies, such as a label `y` or a noise level `sigma`.

A condition is a keyword parameter of `forward`. The energy receives a tensor with one row for each point; a bound value is a number, a
tensor with one row for all points, or one row for each chain. For a batch of some chains, the reserved condition `chains` selects rows.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from composable_energy.energies.evaluation import SharedModule, memoize
from composable_energy.energies.identity import equal
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.options import nearest

if TYPE_CHECKING:
    from composable_energy.energies.energy import Energy

CHAINS = "chains"


class Parameters(NamedTuple):
    """The conditions of a function: all names, those without a default, and whether it takes others (`**conditions`)."""

    names: frozenset[str]
    required: frozenset[str]
    open: bool = False


def parameters_of(function: Callable[..., object], positional: int = 1) -> Parameters:
    """Returns the conditions of a function: its parameters after the positional ones. A cache of them would keep the function alive."""
    if isinstance(function, SharedModule):
        function = function.module
    function = getattr(function, "_orig_mod", function)  # the module inside `torch.compile`; there is no public name
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # built-ins without a signature, such as torch.square
        return Parameters(frozenset(), frozenset())
    names: set[str] = set()  # torch.compile does not know `set[str]()`
    required: set[str] = set()
    others = False
    for parameter in list(signature.parameters.values())[positional:]:
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            names.add(parameter.name)
            if parameter.default is parameter.empty:
                required.add(parameter.name)
        others |= parameter.kind is parameter.VAR_KEYWORD
    return Parameters(frozenset(names), frozenset(required), others)


@lru_cache(maxsize=512)
def method_parameters(method: Callable[..., object]) -> Parameters:
    """Returns the conditions of an unbound method: the parameters after `self` and the points."""
    return parameters_of(method, 2)


def rows_for(name: str, value: object, x: Tensor, chains: Tensor | None = None) -> Tensor:
    """Returns a condition, a number or tensor of 1 row or one for each chain, with one row for each point; `chains` are those of points."""
    if not isinstance(value, Tensor):
        if name == "sigma" and isinstance(value, int | float) and value < 0:  # a check of tensors waits for their device
            raise OptionError(f"sigma must be a number of at least 0, or a tensor of such, got {value}.", ["sigma"])
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
        way = "bind one value for all (a number, or a tensor whose first axis is 1) or one row for each point"
        raise ShapeError(f"Condition {name} has {len(value)} rows of shape {tuple(value.shape[1:])} for {len(x)} points; {way}.")
    return rows


def bound_rows(name: str, value: object, x: Tensor, chains: Tensor | None) -> Tensor:
    """Returns `rows_for`; within an expression, equal values share one tensor."""
    cached: list[tuple[object, Tensor]] = memoize(("rows", name, id(x), id(chains)), (x, chains), list)
    # Only the latest 16 are compared: `infer` binds thousands of candidates.
    if (rows := next((rows for other, rows in cached[-16:] if equal(other, value)), None)) is None:
        rows = rows_for(name, value, x, chains)
        cached.append((value, rows))
    return rows


def check_conditions(energy: "Energy", conditions: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """Returns the conditions that an energy depends on, with one row for each point; raises `ExpressionError` if they are not those."""
    if not ((required := energy.required_conditions) or conditions):
        return conditions
    check_names(energy, conditions, energy.conditions | {CHAINS})
    if missing := sorted(required - conditions.keys()):
        ways = " or ".join(f"`.at({n})`" if n == "sigma" else f"`.given({n}=...)`" for n in missing)
        raise ExpressionError(f"{energy} depends on {', '.join(missing)}, which is not bound: bind it with {ways}.")
    own = energy.conditions & conditions.keys()
    return {name: conditions[name] if name == CHAINS else rows_for(name, conditions[name], x) for name in own}


def check_names(owner: object, given: Mapping[str, Any], accepted: Iterable[str]) -> Mapping[str, Any]:
    """Returns conditions or arguments of an energy; raises `ExpressionError` if a name is not accepted."""
    if unknown := sorted(set(given).difference(accepted)):
        names = sorted(set(accepted) - {CHAINS})
        bound = any(unknown[0] in vars(part).get("values", {}) for part in getattr(owner, "modules", tuple)())
        hint = " It is already bound." if bound else nearest(unknown[0], names) or f" It takes {', '.join(names) or 'none'}."
        raise ExpressionError(f"{owner} takes no {unknown[0]}.{hint}")
    return given


def copy_condition(value: Any) -> Any:
    """Returns a copy of a condition, of arrays and lists of numbers as a tensor; a learnable tensor stays connected to its original."""
    try:
        copied = torch.tensor(value) if not isinstance(value, Tensor) else value.clone() if value.requires_grad else value.detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"A condition is a number or a tensor, got {type(value).__name__}: {error}") from error
    if copied.is_complex():
        raise OptionError(f"A condition is a real number or a tensor of real numbers, got {value}.")
    return copied if isinstance(value, Tensor | np.ndarray | list | tuple) else value


def detach_conditions(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns bound conditions for copying and pickling: computed tensors are detached."""
    return {name: value.detach() if isinstance(value, Tensor) and not value.is_leaf else value for name, value in values.items()}
