r"""Twins: copies of an energy in eval mode that share its storage.

Sampling runs on a twin, so the modes, gradients and flags of the caller's modules never change. Several threads can sample one energy
while another trains it.

`deepcopy` does not copy functions. So functions are rebuilt with twins of the modules that they capture directly (see `captures`).
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from typing import Any, TypeVar

from torch import Tensor, nn

from composable_energy.captures import PLAIN, attributes, check_methods, content, contents, holds_modules, is_data, named_globals, slots
from composable_energy.errors import ComposableEnergyError, ExpressionError

T = TypeVar("T")

_CODE = (types.FunctionType, types.MethodType)
_ATTEMPTS = 20
_CONTAINERS = (dict, OrderedDict, list, set)  # a module has many empty ones
_DEFAULTS = {"__reduce_ex__": object.__reduce_ex__, "__reduce__": object.__reduce__}


def twin(energy: T) -> T:
    """Returns a copy in eval mode that shares the storage of all tensors; its parameters require no gradient.

    Later writes to the tensors reach the copy, other changes do not. It takes milliseconds for weights of any size. Attributes
    or globals that an energy changes while it is evaluated change in its twin.

    Args:
        energy: An energy, or any module.

    Raises:
        ExpressionError: A part cannot be copied, has parameters without values, or uses a module in training mode that is not copied.

    Example:
        >>> import torch, composable_energy as ce
        >>> from composable_energy.sampling import twin
        >>> energy = ce.as_energy(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Dropout(), torch.nn.Flatten(0)))
        >>> energy.training, twin(energy).training
        (True, False)
    """
    for _ in range(_ATTEMPTS):
        try:
            return _Twins().of(energy)
        except _ChangedMeanwhile:
            continue
    raise ExpressionError(f"{energy} cannot be copied: another thread keeps adding attributes to its modules.")


class _ChangedMeanwhile(Exception):  # noqa: N818  (never leaves this file)
    """The energy changed while it was copied."""


class _Twins:
    """The twins of one call; `memo` is the memo of `copy.deepcopy`."""

    def __init__(self) -> None:
        self.memo: dict[int, Any] = {}
        self.spaces: dict[int, dict[str, Any]] = {}  # copies of the globals of functions

    def of(self, value: Any) -> Any:
        """Returns the twin of an object other than a function."""
        items = [item for item in contents(value) if not isinstance(item, PLAIN)]
        for item in items:
            if isinstance(item, Tensor):
                self.memo.setdefault(id(item), _share_storage(item))
            elif is_data(item):
                self.memo.setdefault(id(item), item)
        try:
            for item in reversed(items):  # inner parts first, so that deep expressions need no deep recursion
                if isinstance(item, nn.Module):
                    self._copy(item)
            copied = copy.deepcopy(value, self.memo)
        except ComposableEnergyError:
            raise
        except Exception as error:
            if "changed size during iteration" in str(error):  # another thread has set a new attribute
                raise _ChangedMeanwhile from error
            raise ExpressionError(
                f"Sampling runs on a copy, and {value} cannot be copied ({type(error).__name__}: {error}). Remove parts that "
                "`copy.deepcopy` cannot copy, or give their class a `__deepcopy__`."
            ) from error
        functions = any(isinstance(item, types.FunctionType) for item in items)
        for item in items:
            new = self.memo.get(id(item))
            if isinstance(item, nn.Module) and new is not None:
                new.training = False
                if hasattr(type(item), "became_twin"):
                    new.became_twin(item)
            if functions and new is not None and new is not item and not isinstance(item, (Tensor, *_CODE)):
                self._replace_functions(new)
        for kind in {type(item) for item in items}:
            check_methods(kind)
        return self._rebuild(copied)

    def _copy(self, module: nn.Module) -> None:
        """Adds a copy of a module to the memo; twice as fast as `copy.deepcopy` for modules without hooks for copying."""
        cls = type(module)
        plain = all(getattr(cls, name) is default for name, default in _DEFAULTS.items())
        plain = plain and cls.__setstate__ is nn.Module.__setstate__  # looked up here, because `torch.compile` replaces it
        if hasattr(cls, "__deepcopy__") or slots(cls) or not plain:
            copy.deepcopy(module, self.memo)
        elif id(module) not in self.memo:
            new = self.memo[id(module)] = cls.__new__(cls)
            self.memo.setdefault(id(self.memo), []).append(module)
            for name, value in list(attributes(module).items()):
                if isinstance(value, PLAIN):
                    vars(new)[name] = value
                elif type(value) in _CONTAINERS and not value:
                    vars(new)[name] = type(value)()
                else:
                    vars(new)[name] = copy.deepcopy(value, self.memo)

    def _replace_functions(self, holder: Any) -> None:
        """Replaces the functions in a copied object, which shares them with the original."""
        if isinstance(holder, list):
            holder[:] = map(self._rebuild, holder)
            return
        for name, value in list((holder if isinstance(holder, dict) else attributes(holder)).items()):
            if isinstance(value, types.FunctionType | functools.partial | tuple | set | frozenset):
                new = self._rebuild(value)
                if new is value:
                    continue
                if isinstance(holder, dict):
                    holder[name] = new
                else:
                    object.__setattr__(holder, name, new)  # also of a frozen dataclass

    def _rebuild(self, value: Any) -> Any:
        """Returns a copied value with rebuilt functions; the value itself if none of them captures modules."""
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            new = self._rebuild(value.func)
            return value if new is value.func else functools.partial(new, *value.args, **value.keywords)
        if isinstance(value, tuple | set | frozenset):
            items = [self._rebuild(item) for item in value]
            if any(new is not old for new, old in zip(items, value, strict=True)):
                return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        if id(function) in self.memo:
            return self.memo[id(function)]
        if not holds_modules(function):
            return function
        space, used = function.__globals__, {name: value for name, value in named_globals(function).items() if holds_modules(value)}
        if used:
            space = self.spaces[id(space)] = self.spaces.get(id(space)) or dict(space)
        cells = [types.CellType() if holds_modules(content(cell)) else cell for cell in function.__closure__ or ()]
        new = types.FunctionType(function.__code__, space, function.__name__, closure=tuple(cells))
        self.memo[id(function)] = new  # before its captures, which may contain it
        self.memo.setdefault(id(self.memo), []).append(function)  # kept alive, as `copy.deepcopy` does
        new.__defaults__ = None if function.__defaults__ is None else tuple(map(self._value, function.__defaults__))
        new.__kwdefaults__ = {name: self._value(value) for name, value in (function.__kwdefaults__ or {}).items()}
        new.__qualname__ = function.__qualname__
        vars(new).update(vars(function))
        space.update({name: self._value(value) for name, value in used.items()})
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            if cell is not old:
                cell.cell_contents = self._value(old.cell_contents)
        return new

    def _value(self, value: Any) -> Any:
        if not holds_modules(value):
            return value
        return self._function(value) if isinstance(value, types.FunctionType) else self.of(value)


def _share_storage(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return tensor.detach() if tensor.requires_grad else tensor
    if nn.parameter.is_lazy(tensor):
        raise ExpressionError("A lazy module has no weights before its first call: evaluate the energy once before sampling.")
    own_class = type(tensor) is not nn.Parameter and issubclass(type(tensor), nn.Parameter)
    new = tensor.detach().as_subclass(type(tensor)) if own_class else nn.Parameter(tensor.detach(), requires_grad=False)
    vars(new).update(vars(tensor))
    return new
