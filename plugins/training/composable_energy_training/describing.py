"""Settings as plain data: what a run records of its objective, model and preparation, to compare when it goes on.

Objectives are described by the arguments of their constructors, other objects by their attributes, functions by their code, their defaults
and what they capture, tensors by a digest of their values. What a function reads from globals is not described.
"""

from __future__ import annotations

import enum
import functools
import math
import types
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from composable_energy.files import digest_of
from composable_energy_training.objective import Objective, settings_of

__all__ = ["described", "differences", "model_settings"]

_DEPTH = 8
_PLAIN = (bool, int, str, type(None))
_SHALLOW = (*_PLAIN, float, Tensor, type, types.FunctionType, types.BuiltinFunctionType, torch.dtype)
_STABLE = ("torch", "composable_energy")  # packages whose functions are described by their names


def described(value: Any, own: Collection[int] = (), path: tuple[int, ...] = ()) -> Any:
    """Returns a value as plain data: equal for values that do the same, as far as their attributes say.

    Args:
        value: Anything.
        own: The ids of tensors whose values do not count, since a checkpoint has them.
        path: The ids of the objects that this one is in.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, (torch.dtype, torch.device, PurePath, np.dtype, enum.Enum, bytes, complex)):
        return str(value)
    if isinstance(value, (np.ndarray, np.generic)) and np.asarray(value).dtype.kind in "biuf":
        value = torch.as_tensor(np.array(value))
    if isinstance(value, Tensor):
        return "in the checkpoint" if id(value) in own else _tensor(value)
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)) or id(value) in path or len(path) >= _DEPTH:
        return getattr(value, "__qualname__", type(value).__qualname__)

    def inner(some: Any) -> Any:
        return described(some, own, (*path, id(value)))

    if isinstance(value, Mapping):
        return {str(key): inner(some) for key, some in value.items()}
    if isinstance(value, Set):
        return sorted((inner(some) for some in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [inner(some) for some in value]
    if isinstance(value, functools.partial):
        return {"partial": inner(value.func), "args": inner(value.args), **inner(value.keywords)}
    if isinstance(value, types.MethodType):
        return {"method": value.__name__, "of": inner(value.__self__)}
    if isinstance(value, types.FunctionType):
        return _function(value, inner)
    if isinstance(value, nn.Module) and not isinstance(value, Objective):
        tensors = {**dict(value.named_parameters()), **dict(value.named_buffers())}
        return {"modules": model_settings(value), "tensors": inner(tensors)}
    return {"class": type(value).__qualname__, **inner(_attributes(value))}


def model_settings(model: nn.Module) -> dict[str, Any]:
    """Returns the class of each module by its name, and its public attributes that are numbers, texts, tensors, functions or lists.

    Parameters and persistent buffers are not among them: they are in the checkpoint.
    """
    found = {}
    for name, module in model.named_modules():
        public = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training" and _shallow(value)}
        state = {key for key in module.state_dict() if "." not in key}
        lost = {key: value for key, value in module.named_buffers(recurse=False) if key not in state}
        found[name or "root"] = {"class": type(module).__qualname__, **described({**public, **lost})}
    return found


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Yields what differs between two descriptions: a dotted name, the old value and the new one."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            dotted = f"{name}.{key}" if name else key
            if key not in there:
                yield f"{dotted} is new: {here[key]!r}"
            elif key not in here:
                yield f"{dotted} was {there[key]!r}, is gone"
            else:
                yield from differences(there[key], here[key], dotted)
    elif there != here:
        yield f"{name} was {there!r}, is {here!r}"


def _attributes(value: Any) -> dict[str, Any]:
    if isinstance(value, Objective):
        return settings_of(value)
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    slots = [name for kind in type(value).__mro__ for name in _names(getattr(kind, "__slots__", ())) if hasattr(value, name)]
    return {**{name: getattr(value, name) for name in slots if name != "__weakref__"}, **getattr(value, "__dict__", {})}


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _function(function: types.FunctionType, inner: Any) -> Any:
    package = (function.__module__ or "").partition(".")[0]
    if package in _STABLE and not function.__closure__:
        return function.__qualname__
    captured = dict(zip(function.__code__.co_freevars, (_content(cell) for cell in function.__closure__ or ()), strict=True))
    defaults = {"defaults": function.__defaults__, **(function.__kwdefaults__ or {})}
    told = {"function": function.__qualname__, "code": _code(function.__code__), **inner(captured)}
    return {**told, **inner(defaults)} if function.__defaults__ or function.__kwdefaults__ else told


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _code(code: types.CodeType) -> str:
    constants = [_code(some) if isinstance(some, types.CodeType) else described(some) for some in code.co_consts]
    return blake2b(repr((code.co_code, code.co_names, constants)).encode(), digest_size=8).hexdigest()


def _tensor(tensor: Tensor) -> str:
    kind = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    return f"{kind} {tensor.tolist()!r}" if tensor.numel() <= 4 else f"{kind} with digest {digest_of({'': tensor})[:16]}"


def _shallow(value: Any) -> bool:
    return all(map(_shallow, value)) if isinstance(value, (list, tuple)) else isinstance(value, _SHALLOW)
