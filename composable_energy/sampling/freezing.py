"""Leaving no trace: everything that sampling could change is as before on every exit."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["frozen", "reachable"]

_PLAIN = (str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device, torch.Generator)
_FOREIGN = ("torch.", "numpy.", "builtins.", "abc.", "typing.", "logging.", "composable_energy.")  # code that names no module of a user
_LONG = 10_000  # a container of more is data


@contextmanager
def frozen(*roots: object, threads: int | None = None) -> Iterator[None]:
    """Parameters without gradient, modules in eval mode, the random state untouched; all of it restored on every exit.

    Args:
        *roots: Energies, or anything that reaches modules: functions with closures, partials, bound methods, containers.
        threads: Threads inside an operation meanwhile; None leaves them alone.
    """
    with ExitStack() as restore:
        if threads is not None:
            restore.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        restore.callback(torch.set_rng_state, torch.get_rng_state())
        tensors, modules = reachable(*roots)
        if torch.cuda.is_available():
            for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
                restore.callback(torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device)
        for tensor in tensors:
            if tensor.is_leaf and tensor.requires_grad and not tensor.is_inference():
                restore.callback(tensor.requires_grad_, True)
                tensor.requires_grad_(False)
        for module in modules:
            if module.training:
                restore.callback(setattr, module, "training", True)
                module.training = False
        yield


def reachable(*roots: object) -> tuple[list[Tensor], list[nn.Module]]:
    """Returns the tensors and the modules that can be reached from some objects, each once."""
    tensors: list[Tensor] = []
    modules: list[nn.Module] = []
    seen: dict[int, object] = {}  # keeps what it has seen, so that no id is used twice
    todo = list(roots)
    while todo:
        item = todo.pop()
        if isinstance(item, _PLAIN) or id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            tensors.append(item)
        elif not isinstance(item, types.ModuleType):
            if isinstance(item, nn.Module):
                modules.append(item)
            todo.extend(_inside(item))
    return tensors, modules


def _inside(item: object) -> Iterator[object]:
    if isinstance(item, types.FunctionType):
        if not f"{item.__module__}.".startswith(_FOREIGN):
            yield from _of_function(item)
    elif isinstance(item, types.MethodType):
        yield item.__self__
        yield item.__func__
    elif isinstance(item, functools.partial):
        yield from (item.func, *item.args, *item.keywords.values())
    elif isinstance(item, Mapping):
        yield from item.values()
    elif isinstance(item, (list, tuple, set, frozenset)):
        yield from item if len(item) <= _LONG else ()
    else:
        yield from vars(item).values() if hasattr(item, "__dict__") else ()
        for cls in type(item).__mro__:
            if not f"{cls.__module__}.".startswith(_FOREIGN):
                slots = vars(cls).get("__slots__", ())
                yield from (getattr(item, name, None) for name in ((slots,) if isinstance(slots, str) else slots))
                yield from (method for method in vars(cls).values() if isinstance(method, types.FunctionType))


def _of_function(function: types.FunctionType) -> Iterator[object]:
    """Yields what a function holds: its closure, its defaults, and the globals that its code names."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        found: Any = function.__globals__[name]
        if isinstance(found, types.ModuleType):
            if not f"{found.__name__}.".startswith(_FOREIGN):
                yield from (vars(found)[inner] for inner in names & vars(found).keys())
        else:
            yield found


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
