"""Descriptions of settings as plain data: recorded in a checkpoint, and compared when a run resumes.

An objective is described by its constructor's arguments, another object by its attributes, a function by its source, defaults and captured
variables, a tensor by a digest of its values. Globals that a function reads are not described.
"""

import enum
import functools
import inspect
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
from composable_energy_training.objective import Objective, constructor_arguments

_DEPTH = 8
_PLAIN = (bool, int, str, type(None))
_SHALLOW = (*_PLAIN, float, Tensor, type, types.FunctionType, types.BuiltinFunctionType, torch.dtype)
_STABLE = ("torch", "composable_energy")  # functions of these packages are described by name


def describe(value: Any, trained: Collection[int] = (), path: tuple[int, ...] = ()) -> Any:
    """Returns a description of a value as plain data; values with equal attributes have equal descriptions. A checkpoint stores the tensors
    with the ids `trained`, so their values are left out. `path` has the ids of the containers."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, (torch.dtype, torch.device, PurePath, np.dtype, enum.Enum, bytes, complex)):
        return str(value)
    if isinstance(value, (np.ndarray, np.generic)) and np.asarray(value).dtype.kind in "biuf":
        value = torch.as_tensor(np.array(value))
    if isinstance(value, Tensor):
        if id(value) in trained:
            return "in the checkpoint"
        dtype = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        return f"{dtype} {value.tolist()!r}" if value.numel() <= 4 else f"{dtype} with digest {digest_of({'': value})[:16]}"
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)) or id(value) in path or len(path) >= _DEPTH:
        return getattr(value, "__qualname__", type(value).__qualname__)

    def inner(part: Any) -> Any:
        return describe(part, trained, (*path, id(value)))

    def spread(parts: Mapping[str, Any]) -> dict[str, Any]:
        return inner(parts) if len(path) < _DEPTH - 1 else {}

    if isinstance(value, Mapping):
        return {str(key): inner(part) for key, part in value.items()}
    if isinstance(value, Set):
        return sorted((inner(part) for part in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [inner(part) for part in value]
    if isinstance(value, functools.partial):
        return {"partial": inner(value.func), "args": inner(value.args), **spread(value.keywords)}
    if isinstance(value, types.MethodType):
        return {"method": value.__name__, "of": inner(value.__self__)}
    if isinstance(value, types.FunctionType):
        return _describe_function(value, spread)
    if isinstance(value, nn.Module) and not isinstance(value, Objective):
        return {"modules": describe_modules(value), "tensors": inner({**dict(value.named_parameters()), **dict(value.named_buffers())})}
    return {"class": type(value).__qualname__, **spread(_attributes(value))}


def describe_modules(model: nn.Module) -> dict[str, Any]:
    """Returns the class of each module by its name, and its public attributes that are numbers, texts, tensors, functions or lists.
    Parameters and persistent buffers are left out, since a checkpoint stores them."""
    found = {}
    for name, module in model.named_modules():
        public = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training" and _is_shallow(value)}
        state = {key for key in module.state_dict() if "." not in key}
        unsaved = {key: value for key, value in module.named_buffers(recurse=False) if key not in state}
        found[name or "root"] = {"class": type(module).__qualname__, **describe({**public, **unsaved})}
    return found


def list_differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Yields a text for each difference between two descriptions: a dotted name, the old value and the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            dotted = f"{name}.{key}" if name else key
            if key not in old:
                yield f"{dotted} is new: {new[key]!r}"
            elif key not in new:
                yield f"{dotted} was {old[key]!r}, is gone"
            else:
                yield from list_differences(old[key], new[key], dotted)
    elif old != new:
        yield f"{name} was {old!r}, is {new!r}"


def _attributes(value: Any) -> dict[str, Any]:
    if isinstance(value, Objective):
        return constructor_arguments(value)
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for some in slots for name in ([some] if isinstance(some, str) else some) if name != "__weakref__"]
    return {**{name: getattr(value, name) for name in names if hasattr(value, name)}, **getattr(value, "__dict__", {})}


def _describe_function(function: types.FunctionType, spread: Any) -> Any:
    if (function.__module__ or "").partition(".")[0] in _STABLE and not function.__closure__:
        return function.__qualname__
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt of Python, or a wrapper of a module, as `torch.compile` makes
        source = ""
    captured = {**inspect.getclosurevars(function).nonlocals, "defaults": function.__defaults__, **(function.__kwdefaults__ or {})}
    return {"function": function.__qualname__, "source": blake2b(source.encode(), digest_size=8).hexdigest(), **spread(captured)}


def _is_shallow(value: Any) -> bool:
    return all(map(_is_shallow, value)) if isinstance(value, (list, tuple)) else isinstance(value, _SHALLOW)
