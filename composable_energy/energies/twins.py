r"""Twins: copies of an energy in eval mode that share its storage, and what an energy contains.

Sampling runs on a twin, so the modes, gradients and flags of the caller's modules never change. Several threads can sample one energy
while another trains it. A function is not copied: one that uses a module in training mode is refused.
"""

from __future__ import annotations

import copy
import functools
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from composable_energy.errors import ExpressionError

T = TypeVar("T")

PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, types.ModuleType, types.BuiltinFunctionType)
_FOREIGN = {*sys.stdlib_module_names, "torch", "numpy", "composable_energy"}  # their code names no module of a user
_UNSEEN = ("training", "_fitting", "_direct")  # modes, and what twins remember of points
_HOOKS = ("__deepcopy__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__")
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
    items = list(contents(energy, captured=False))
    memo: dict[int, Any] = {id(item): _share_storage(item) for item in items if isinstance(item, Tensor)}
    modules = [item for item in items if isinstance(item, nn.Module)]
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
        if new is None:  # its class says that it is its own copy
            continue
        new.training = False
        if hasattr(type(module), "became_twin"):
            new.became_twin(module)
    for function in dict.fromkeys(item for item in items if isinstance(item, types.FunctionType)):
        _check_modes(function)
    for method in dict.fromkeys(method for cls in set(map(type, items)) for method in _methods(cls)):
        _check_modes(method)
    return copied


def contents(root: object, *, captured: bool = True) -> Iterator[object]:
    """Yields an object and the objects inside, in a fixed order: attributes, items, and what functions capture.

    Plain values, such as numbers, are yielded at each occurrence, other objects once.

    Args:
        root: The object.
        captured: Whether to yield what functions capture.
    """
    seen: dict[int, object] = {}  # keeps objects alive, so that no id is reused
    todo = [root]
    while todo:
        item = todo.pop()
        if not isinstance(item, (*PLAIN, type)):
            if id(item) in seen:
                continue
            seen[id(item)] = item
            if captured or not isinstance(item, types.FunctionType):
                todo += _inside(item)[::-1]
        yield item


def tensors_of(energy: object) -> list[Tensor]:
    """Returns the tensors that an energy contains or that its functions capture, each once."""
    return [item for item in contents(energy) if isinstance(item, Tensor)]


def _inside(item: Any) -> list[Any]:
    match item:
        case Tensor():
            return []
        case Mapping() | list() | tuple() | set() | frozenset():
            return [] if len(item) > _MANY else list(item.values() if isinstance(item, Mapping) else item)
        case types.FunctionType():
            return _captured(item)
        case types.MethodType():
            return [item.__self__]
        case functools.partial():
            return [item.func, *item.args, *item.keywords.values()]
    slots = [getattr(item, name) for name in _slots(type(item)) if hasattr(item, name)]
    own = list(getattr(item, "__dict__", {}).items())
    return [*slots, *(value for name, value in own if name not in _UNSEEN and (type(value) not in _DICTS or value))]


def _captured(function: types.FunctionType) -> list[Any]:
    """Returns what a function captures: its closure, its defaults, and the globals that its code names."""
    if _is_foreign(function):
        return []
    codes, names = [function.__code__], dict[str, None]()
    for code in codes:  # also those of inner functions
        names.update(dict.fromkeys(code.co_names))
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    space, cells = function.__globals__, []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # it is not bound yet
            continue
    values = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [value for value in (*values, *(space.get(name) for name in names)) if value is not None and not _is_foreign(value)]


def _is_foreign(value: Any) -> bool:
    """Returns whether a captured object is one of a library, which holds no module of a user: not a tensor, module or container."""
    if isinstance(value, Tensor | nn.Module | Mapping | list | tuple | set | frozenset | functools.partial | types.MethodType):
        return False
    kind = value if isinstance(value, type | types.FunctionType) else type(value)
    return kind.__module__.partition(".")[0] in _FOREIGN


def _check_modes(function: types.FunctionType) -> None:
    """Raises if a function uses a module in training mode."""
    for value in _captured(function):
        for item in contents(vars(value) if isinstance(value, type) else value):
            # Lists and the library's own nodes are the same in both modes; the networks in them are items, too.
            same = isinstance(item, nn.ModuleList | nn.ModuleDict) or type(item).__module__.startswith("composable_energy.")
            if isinstance(item, nn.Module) and item.training and not same:
                raise ExpressionError(
                    f"{function.__qualname__} uses a {type(item).__name__} in training mode, and a copy of the energy does not contain it. "
                    "Call its `.eval()`, make it an attribute of the energy, or hand it over: `ce.as_energy(f, modules=[net])` calls "
                    "f(x, net, **conditions)."
                )


@functools.lru_cache(maxsize=512)
def _methods(cls: type) -> tuple[types.FunctionType, ...]:
    """Returns the methods of a class of a user, without constructors, which have run."""
    own = [vars(base) for base in cls.__mro__ if not _is_foreign(base)]
    return tuple(item for some in own for name, item in some.items() if isinstance(item, types.FunctionType) and name != "__init__")


@functools.lru_cache(maxsize=512)
def _slots(cls: type) -> tuple[str, ...]:
    names = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    found = [name for some in names for name in ((some,) if isinstance(some, str) else some)]
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def _copy(module: nn.Module, memo: dict[int, Any]) -> None:
    """Adds a copy of a module to a memo, as `copy.deepcopy` does in five times the time: a module has many empty dictionaries."""
    cls = type(module)
    if _slots(cls) or any(getattr(cls, name, None) is not getattr(nn.Module, name, None) for name in _HOOKS):
        copy.deepcopy(module, memo)
    elif id(module) not in memo:
        new = memo[id(module)] = cls.__new__(cls)
        for name, value in getattr(module, "__getstate__", lambda: vars(module).copy())().items():
            empty = type(value) in _DICTS and not value
            vars(new)[name] = type(value)() if empty else value if isinstance(value, PLAIN) else copy.deepcopy(value, memo)


def _share_storage(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return tensor.detach() if tensor.requires_grad else tensor
    if nn.parameter.is_lazy(tensor):
        raise ExpressionError("A lazy module has no weights before its first call: evaluate the energy once before sampling.")
    own_class = type(tensor) is not nn.Parameter and issubclass(type(tensor), nn.Parameter)
    new = tensor.detach().as_subclass(type(tensor)) if own_class else nn.Parameter(tensor.detach(), requires_grad=False)
    vars(new).update(vars(tensor))
    return new
