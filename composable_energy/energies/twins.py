"""Twins: copies of an energy in eval mode that share its storage, and what an energy contains.

Sampling runs on a twin, so the modes, gradients and flags of the caller's modules never change. Several threads can sample one energy
while another trains it. A function is not copied: one that uses a module in training mode is refused.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import sys
from collections import OrderedDict
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType, TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from composable_energy.errors import ExpressionError

T = TypeVar("T")

_PLAIN = {str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device, torch.Size, ModuleType, BuiltinFunctionType}
_PLAIN |= {TracebackType, FrameType, CodeType}  # an exception knows who called, which is no part of it
_LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "composable_energy"}  # their functions use no module of a user
_DICTS = (dict, OrderedDict)  # a module has many empty ones
_MANY = 1000  # a container with more items is data


def twin(energy: T) -> T:
    """Returns a copy in eval mode that shares the storage of all tensors; its parameters require no gradient.

    Later writes to the tensors reach the copy, other changes do not. It takes milliseconds for weights of any size. Attributes
    or globals that an energy changes while it is evaluated change in its twin.

    Args:
        energy: An energy, or any module.

    Raises:
        ExpressionError: A part cannot be copied, has parameters without values, or a function uses a module in training mode.

    Example:
        >>> import torch, composable_energy as ce
        >>> from composable_energy.sampling import twin
        >>> energy = ce.as_energy(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Dropout(), torch.nn.Flatten(0)))
        >>> energy.training, twin(energy).training
        (True, False)
    """
    memo: dict[int, Any] = {}
    modules: list[nn.Module] = []
    functions: dict[FunctionType, None] = {}
    for item in contents(energy, captured=False):
        if isinstance(item, Tensor):
            memo[id(item)] = _share_storage(item)
        elif isinstance(item, nn.Module):
            modules.append(item)
            item = getattr(type(item), "forward", None)
        if isinstance(item, FunctionType):
            functions[item] = None
    try:
        for module in reversed(modules):  # inner parts first, so that deep expressions need no deep recursion
            _copy(module, memo)
        copied = copy.deepcopy(energy, memo)
    except Exception as error:
        raise ExpressionError(
            f"Sampling runs on a copy, and {energy} cannot be copied ({type(error).__name__}: {error}). Remove parts that "
            "`copy.deepcopy` cannot copy, or give their class a `__deepcopy__`."
        ) from error
    for module in modules:
        new = memo.get(id(module))
        if new is not None:  # else its class says that it is its own copy
            new.training = False
            if hasattr(new, "became_twin"):
                new.became_twin()
    for function in functions:
        for item in contents(_captured(function)):
            # Lists and the library's own nodes are the same in both modes; the networks in them are items, too.
            same = isinstance(item, nn.ModuleList | nn.ModuleDict) or type(item).__module__.startswith("composable_energy.")
            if isinstance(item, nn.Module) and item.training and not same:
                raise ExpressionError(
                    f"{function.__qualname__} uses a {type(item).__name__} in training mode, and a copy of the energy does not contain it. "
                    "Call its `.eval()`, make it an attribute of the energy, or hand it over: `ce.as_energy(f, modules=[net])` calls "
                    "f(x, net, **conditions)."
                )
    return copied


def contents(root: object, *, captured: bool = True) -> list[object]:
    """Returns an object and the objects inside, each once and in a fixed order: attributes, items, and what functions capture.

    Args:
        root: The object.
        captured: Whether to include what functions capture.
    """
    seen: dict[int, object] = {}
    todo = [root]
    while todo:
        item = todo.pop()
        kind = type(item)
        if kind in _PLAIN or (kind in _DICTS and not item) or id(item) in seen or isinstance(item, type):
            continue
        seen[id(item)] = item
        if isinstance(item, FunctionType):
            todo += _captured(item)[::-1] if captured else ()
        elif not isinstance(item, Tensor) and not (isinstance(item, dict | list | tuple | set | frozenset) and len(item) > _MANY):
            todo += gc.get_referents(item)[::-1]
    return list(seen.values())


def tensors_of(energy: object) -> list[Tensor]:
    """Returns the tensors that an energy contains or that its functions capture, each once."""
    return [item for item in contents(energy) if isinstance(item, Tensor)]


def _captured(function: FunctionType) -> list[Any]:
    """Returns what a function of a user captures: its closure, its defaults, the globals that it names, and attributes of classes."""
    if _is_of_library(function):
        return []
    codes = [function.__code__]
    for code in codes:  # also those of inner functions and comprehensions, which `inspect.getclosurevars` leaves out
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    named = dict.fromkeys(name for code in codes for name in code.co_names if name in function.__globals__)
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *map(function.__globals__.__getitem__, named)]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is not bound yet
            values.append(cell.cell_contents)
    return [dict(vars(value)) if isinstance(value, type) and not _is_of_library(value) else value for value in values]


def _is_of_library(value: FunctionType | type) -> bool:
    return (value.__module__ or "").partition(".")[0] in _LIBRARIES


def _copy(module: nn.Module, memo: dict[int, Any]) -> None:
    """Adds a copy of a module to a memo, as `copy.deepcopy` does in five times the time: a module has many empty dictionaries."""
    cls = type(module)
    own = any(getattr(cls, name, None) is not getattr(nn.Module, name, None) for name in ("__deepcopy__", "__setstate__", "__reduce_ex__"))
    state = None if own else getattr(module, "__getstate__", lambda: vars(module).copy())()
    if not isinstance(state, dict):  # an own way, or slots
        copy.deepcopy(module, memo)
    elif id(module) not in memo:
        new = memo[id(module)] = cls.__new__(cls)
        for name, value in state.items():
            empty = type(value) in _DICTS and not value
            vars(new)[name] = type(value)() if empty else value if type(value) in _PLAIN else copy.deepcopy(value, memo)


def _share_storage(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return tensor.detach() if tensor.requires_grad else tensor
    if nn.parameter.is_lazy(tensor):
        raise ExpressionError("A lazy module has no weights before its first call: evaluate the energy once before sampling.")
    own_class = type(tensor) is not nn.Parameter and issubclass(type(tensor), nn.Parameter)
    new = tensor.detach().as_subclass(type(tensor)) if own_class else nn.Parameter(tensor.detach(), requires_grad=False)
    vars(new).update(vars(tensor))
    return new
