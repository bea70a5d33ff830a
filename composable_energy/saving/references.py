"""What the registry made, made again: shared with the rest of the session where it is the same to the bit, else a copy.

The session remembers what it loaded for as long as somebody holds it. So energies that were saved apart, such as the attributes of one
base, have one base when they are loaded apart, and an expression counts it once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from composable_energy.errors import FileFormatError
from composable_energy.registry.again import make_again
from composable_energy.registry.records import Origin
from composable_energy.sampling.digests import digest_of_tensor
from composable_energy.saving.made import Made
from composable_energy.saving.values import Source, unplain, unplain_recommendation

__all__ = ["KEYS", "make_alone", "make_references"]

KEYS = frozenset({"kind", "entry", "member", "options", "distribution", "version", "modes", "tensors"})
_LOADED: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()  # by what the file tells of it


def make_references(data: Sequence[Any], source: Source, tensors: Mapping[str, Tensor], where: str) -> list[Made]:
    """Returns the objects that a config refers to.

    Raises:
        FileFormatError: A reference is malformed, or its tensors do not fit what the plug-in makes.
        PluginNotFound: A plug-in is not installed.
        PluginLoadError: A plug-in fails to load.
    """
    result = [_made(item, source, tensors, where) for item in data]
    for group in sorted({made.group for made in result}):
        places = [i for i, made in enumerate(result) if made.group == group]
        members, names = [result[i] for i in places], _names([data[i] for i in places], tensors)
        if all(made.as_written for made in members) or _found(members, names):
            continue
        copies = copy.deepcopy([made.module for made in members])  # at once, so that they share what they shared
        for made, module in zip(members, copies, strict=True):
            made.module = module
        for made, name in zip(members, names, strict=True):
            made.restore()
            _LOADED[name] = made.module
    return result


def _names(group: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns names under which the objects of a group are remembered: all that a file tells of the group, and their place in it."""
    told = [
        {**data, "group": 0, "tensors": {path: digest_of_tensor(tensors[name]).hex() for path, name in data["tensors"].items()}}
        for data in group
    ]
    whole = blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()
    return [f"{whole}.{place}" for place in range(len(group))]


def _found(members: Sequence[Made], names: Sequence[str]) -> bool:
    """Takes what was loaded before, if all of a group is still there and as it was."""
    before = [_LOADED.get(name) for name in names]
    now = [made.module for made in members]
    for made, module in zip(members, before, strict=True):
        made.module = made.module if module is None else module
    if None not in before and all(made.as_written for made in members):
        return True
    for made, module in zip(members, now, strict=True):
        made.module = module
    return False


def make_alone(data: Any, source: Source, tensors: Mapping[str, Tensor], where: str) -> Made:
    """Returns an object whose options hold energies or modules of the same file, which are as written already.

    Raises:
        FileFormatError: The reference is malformed, or its tensors do not fit what the plug-in makes.
        PluginNotFound: A plug-in is not installed.
        PluginLoadError: A plug-in fails to load.
    """
    made = _made(data, source, tensors, where)
    made.restore()
    return made


def _made(data: Any, source: Source, tensors: Mapping[str, Tensor], where: str) -> Made:
    if not isinstance(data, dict) or data.keys() - {"group", "recommended"} != KEYS or data["kind"] not in ("energy", "encoder"):
        raise FileFormatError(f"{where}: a reference is malformed.")
    origin = _origin(data, source, where)
    label = f"{origin} of {origin.distribution or 'this session'} {origin.version or ''}".rstrip()
    names, modes, group = data["tensors"], data["modes"], data.get("group", 0)
    if not isinstance(names, dict) or not all(isinstance(name, str) and name in tensors for name in names.values()):
        raise FileFormatError(f"{where}: tensors of {label} are missing.")
    if not isinstance(modes, dict) or not all(type(mode) is bool for mode in modes.values()) or type(group) is not int:
        raise FileFormatError(f"{where}: the reference to {label} is malformed.")
    try:
        more = {"recommended": unplain_recommendation(data["recommended"], source)} if "recommended" in data else {}
        module = make_again(data["kind"], origin)
        made = Made(module, {path: tensors[name] for path, name in names.items()}, modes, label, group, more)
        made.check()
    except (ValueError, TypeError) as error:
        raise FileFormatError(f"{where}: {error}.") from error
    return made


def _origin(data: Mapping[str, Any], source: Source, where: str) -> Origin:
    entry, member, distribution, version = (data[key] for key in ("entry", "member", "distribution", "version"))
    if not isinstance(entry, str) or not all(text is None or isinstance(text, str) for text in (member, distribution, version)):
        raise FileFormatError(f"{where}: the reference to {entry!r} is malformed.")
    try:
        options = unplain(data["options"], source)
        if not isinstance(options, dict):
            raise ValueError("they are no names and values")
    except (ValueError, TypeError) as error:
        raise FileFormatError(f"{where}: the options of {entry!r} cannot be read: {error}.") from error
    return Origin(entry, member, options, distribution, version)
