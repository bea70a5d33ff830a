"""The objects inside an energy, and those that its functions capture.

A function captures *directly* what is in its closure, its defaults, and the globals that its code names. Further globals and attributes
are not searched: a copy of the energy does not contain them, so a module in training mode there is refused.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.errors import ExpressionError

PLAIN = (str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device, types.ModuleType, types.BuiltinFunctionType)
_ITEMS = (list, tuple, set, frozenset)
_HANDLED = (*PLAIN, *_ITEMS, dict, Tensor, nn.Module, types.FunctionType, functools.partial)
_FOREIGN = ("torch.", "numpy.", "builtins.", "abc.", "functools.", "typing.")  # their code names no module of a user
_GETSTATE = getattr(object, "__getstate__", None)  # since Python 3.11
_UNSEEN = ("training", "_fitting", "_direct")  # modes, and what twins remember of points
_MANY = 1000  # a captured container with more items is data


def tensors_of(energy: object) -> list[Tensor]:
    """Returns the tensors that an energy contains or that its functions capture directly, each once."""
    return [item for item in contents(energy) if isinstance(item, Tensor)]


def dense_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Returns the dense tensors that make up a tensor: itself, or the indices and values of a sparse one.

    `torch.equal` takes dense tensors only.
    """
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return tensor.indices(), tensor.values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.to_dense(),)


def contents(root: object) -> Iterator[object]:
    """Yields an object and the objects inside, in a fixed order: attributes, items, and what functions capture directly.

    Plain values, such as numbers, are yielded at each occurrence, other objects once.
    """
    seen: dict[int, object] = {}  # keeps objects alive, so that no id is reused
    todo = [root]
    while todo:
        item = todo.pop()
        if not isinstance(item, PLAIN):
            if id(item) in seen:
                continue
            seen[id(item)] = item
            if not isinstance(item, Tensor):
                todo += _inside(item)[::-1]
        yield item


def is_data(item: Any) -> bool:
    """Returns whether a container is long and starts with a plain value; it is neither searched nor copied."""
    return isinstance(item, dict | list | tuple) and len(item) > _MANY and isinstance(next(iter(item)), PLAIN)


def _inside(item: Any) -> list[Any]:
    if is_data(item):
        return []
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, _ITEMS):
        return list(item)
    if isinstance(item, types.FunctionType):
        return _direct_captures(item)
    if isinstance(item, types.MethodType):
        return [item.__self__]
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    return [value for name, value in list(attributes(item).items()) if name not in _UNSEEN and not (isinstance(value, dict) and not value)]


def attributes(item: Any) -> dict[str, Any]:
    """Returns the attributes that a copy has."""
    cls = type(item)
    own = getattr(item, "__dict__", {})
    if _GETSTATE is not (reduced := getattr(cls, "__getstate__", None)) and reduced and not hasattr(cls, "__deepcopy__"):
        state = item.__getstate__()
        if isinstance(state, dict):
            return state
    names = slots(cls)
    return {**own, **{name: getattr(item, name) for name in names if hasattr(item, name)}} if names else own


@functools.lru_cache(maxsize=512)
def slots(cls: type) -> tuple[str, ...]:
    """Returns the names of the slots of a class."""
    found = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    names = [name for some in found for name in ((some,) if isinstance(some, str) else some)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def holds_modules(value: Any, seen: set[int] | None = None) -> bool:
    """Returns whether a captured value is a module, or a function or small container with one.

    Args:
        value: The value.
        seen: The ids of the values that were searched.
    """
    seen = set() if seen is None else seen
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, PLAIN) or id(value) in seen:
        return False
    match value:
        case types.FunctionType() | functools.partial():
            inside = _inside(value)
        case types.MethodType():
            inside = [value.__self__]
        case dict():
            inside = list(value.values()) if len(value) <= _MANY else []
        case list() | tuple() | set() | frozenset():
            inside = list(value) if len(value) <= _MANY else []
        case _:
            return False
    seen.add(id(value))
    return any(holds_modules(item, seen) for item in inside)


def _direct_captures(function: types.FunctionType) -> list[Any]:
    """Returns what a function captures directly: its closure, its defaults, and the globals that its code names."""
    if f"{function.__module__}.".startswith(_FOREIGN):
        return []
    cells = [content(cell) for cell in function.__closure__ or ()]
    values = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *named_globals(function).values()]
    names = _names(function.__code__)[1]
    found: list[Any] = []
    for value in values:
        if isinstance(value, (*_ITEMS, dict)) and len(value) > _MANY:
            continue
        if isinstance(value, types.MethodType):
            if isinstance(value.__self__, nn.Module):
                found.append(value)
            else:
                _check_attributes(value.__func__, value.__self__, _names(value.__func__.__code__)[1])
        elif isinstance(value, _HANDLED) and not isinstance(value, type | types.ModuleType):
            found.append(value)
        else:
            _check_attributes(function, value, names)
    return found


def named_globals(function: types.FunctionType) -> dict[str, Any]:
    """Returns the globals that the code of a function names, except functions of other files."""
    space, found = function.__globals__, {}
    for name in _names(function.__code__)[0]:
        value = space.get(name)
        if value is not None and not (isinstance(value, types.FunctionType) and value.__globals__ is not space):
            found[name] = value
    return found


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the globals that code reads, and all names in it with attributes; also of inner functions, in a fixed order."""
    read = [str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _names(constant)
            read += inner[0]
            names += inner[1]
    return tuple(dict.fromkeys(read)), tuple(dict.fromkeys(names))


def content(cell: types.CellType) -> Any:
    """Returns the content of a cell of a closure; None if it is not bound yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _check_attributes(function: Callable[..., Any], value: Any, names: tuple[str, ...]) -> None:
    """Raises if code uses a module in training mode through an attribute of a captured value; a copy of the energy does not contain it."""
    own = vars(value) if isinstance(value, type | types.ModuleType) else attributes(value)
    methods = [getattr(type(value), name, None) for name in ("__call__", *names)]
    inner = [name for method in methods if isinstance(method, types.FunctionType) for name in _names(method.__code__)[1]]
    for name in dict.fromkeys((*names, *inner)):
        if name in own:
            _check_mode(function, name, own[name])


def check_methods(kind: type) -> None:
    """Raises if methods of a class use a global module in training mode; classes are not copied."""
    for cls in kind.__mro__:
        if not f"{cls.__module__}.".startswith((*_FOREIGN, "composable_energy.")):
            for name, method in vars(cls).items():
                if isinstance(method, types.FunctionType) and name != "__init__":  # which has run
                    for used, value in named_globals(method).items():
                        _check_mode(method, used, value)


def _check_mode(function: Callable[..., Any], name: str, value: Any) -> None:
    if isinstance(value, nn.Module):
        if any(module.training for module in value.modules()):
            raise ExpressionError(
                f"{getattr(function, '__qualname__', function)} uses the module {name}, which is in training mode, and a copy of the "
                f"energy does not contain it. Call its `.eval()`, make it an attribute of the energy, or pass it to the function: "
                f"ce.as_energy(f, modules=[{name}]) calls f(x, {name}, **conditions)."
            )
    elif isinstance(value, dict | list | tuple) and len(value) <= _MANY:
        for item in value.values() if isinstance(value, dict) else value:
            _check_mode(function, name, item)
