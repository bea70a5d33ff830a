"""What the registry made, made again: shared with the rest of the session where the tensors are the same to the bit, else a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from composable_energy.errors import FileFormatError
from composable_energy.registry.again import make_again
from composable_energy.registry.records import Origin
from composable_energy.saving.made import Made
from composable_energy.saving.values import Source, unplain

__all__ = ["KEYS", "make_alone", "make_references"]

KEYS = frozenset({"kind", "entry", "member", "options", "distribution", "version", "modes", "tensors"})


def make_references(data: Sequence[Any], source: Source, tensors: Mapping[str, Tensor], where: str) -> list[Made]:
    """Returns the objects that a config refers to.

    Raises:
        FileFormatError: A reference is malformed, or its tensors do not fit what the plug-in makes.
        PluginNotFound: A plug-in is not installed.
        PluginLoadError: A plug-in fails to load.
    """
    result = [_made(item, source, tensors, where) for item in data]
    for group in sorted({made.group for made in result}):
        members = [made for made in result if made.group == group]
        if all(made.as_written for made in members):
            continue
        copies = copy.deepcopy([made.module for made in members])  # at once, so that they share what they shared
        for made, module in zip(members, copies, strict=True):
            made.module = module
        for made in members:
            made.restore()
    return result


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
    if not isinstance(data, dict) or data.keys() - {"group"} != KEYS or data["kind"] not in ("energy", "encoder"):
        raise FileFormatError(f"{where}: a reference is malformed.")
    origin = _origin(data, source, where)
    label = f"{origin} of {origin.distribution or 'this session'} {origin.version or ''}".rstrip()
    names, modes, group = data["tensors"], data["modes"], data.get("group", 0)
    if not isinstance(names, dict) or not all(isinstance(name, str) and name in tensors for name in names.values()):
        raise FileFormatError(f"{where}: tensors of {label} are missing.")
    if not isinstance(modes, dict) or not all(type(mode) is bool for mode in modes.values()) or type(group) is not int:
        raise FileFormatError(f"{where}: the reference to {label} is malformed.")
    try:
        module = make_again(data["kind"], origin)
        made = Made(module, {path: tensors[name] for path, name in names.items()}, modes, label, group)
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
