"""Making what entries offer: an object of its own for each caller, marked with its origin."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from composable_energy.energy import Energy
from composable_energy.errors import ComposableEnergyError, OptionError, PluginLoadError, PluginNotFound
from composable_energy.identity import Origin, born_from, mark
from composable_energy.registry.contract import broken, check_made
from composable_energy.registry.family import EnergyFamily
from composable_energy.registry.lookup import FAMILIES, REGISTRY
from composable_energy.registry.records import Entry
from composable_energy.registry.registry import listed, nearest

__all__ = ["entry_of", "family_of", "is_family", "make", "make_encoder", "make_energy", "rebuild_object"]

# What entries of the library's own kinds make; None for kernels, which need a method and no class.
_REQUIRED: Mapping[str, type | None] = {"energy": Energy, "encoder": nn.Module, "kernel": None}


def make_energy(name: str, options: dict[str, Any], copies: dict[int, Any]) -> Energy:
    """Returns an energy by name, for one caller; `copies` is the memo of copies that were made for the same caller."""
    found, slash, member = name.partition("/")
    entry = REGISTRY.entry("energy", found)
    obj = REGISTRY.load("energy", entry)
    origin = Origin(entry.name, member if slash else None, options, entry.distribution, entry.version)
    with born_from(origin):
        if is_family(obj):
            energy = _member(entry, family_of(entry, obj, options), origin.member)
        elif not slash:
            energy = make("energy", entry, obj, options)
        else:
            raise PluginNotFound(f"The energy {found!r} has no members, so there is no {name!r}; ask for {found!r}.")
    return _own("energy", entry, energy, origin, copies)


def _own(kind: str, entry: Entry, made: Any, origin: Origin, copies: dict[int, Any]) -> Any:
    """Returns an object for one caller: a copy, unless its class has just made it. Modules among the options are not copied."""
    passed = set(_modules_in(origin.options))
    if type(made) is not REGISTRY.load(kind, entry):
        copies.update((id(module), module) for module in passed)
        try:
            with torch.inference_mode(False):
                made = copy.deepcopy(made, copies)
        except Exception as error:
            raise broken(entry, f"what it made cannot be copied ({type(error).__name__}: {error})") from error
    mark(kind, made, origin, passed)
    return made


def _modules_in(value: Any) -> Iterator[nn.Module]:
    """Yields the modules in options, which are their caller's."""
    if isinstance(value, nn.Module):
        yield from value.modules()
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _modules_in(item)


def make_encoder(name: str, options: dict[str, Any]) -> nn.Module:
    """Returns an encoder by name, for one caller."""
    entry = REGISTRY.entry("encoder", name)
    origin = Origin(entry.name, None, options, entry.distribution, entry.version)
    with born_from(origin):
        encoder = make("encoder", entry, REGISTRY.load("encoder", entry), options)
    return _own("encoder", entry, encoder, origin, {})


def rebuild_object(kind: str, origin: Origin, copies: dict[int, Any]) -> nn.Module:
    """Returns an energy or encoder made as an origin says.

    Args:
        kind: `energy` or `encoder`.
        origin: How it was made.
        copies: The memo of the copies that were made for the same caller: what they share, this one shares, too.

    Raises:
        PluginNotFound: The distribution that made it does not offer it here, and nothing is registered under the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: It does not take an option.
    """
    name = origin.entry
    if origin.distribution is not None and (kind, name) not in REGISTRY.registered:
        name = f"{origin.distribution}:{name}"
    try:
        REGISTRY.entry(kind, name)
    except PluginNotFound as error:
        if origin.distribution is None:
            way = f"It was registered in the session that wrote it; use composable_energy.register({kind!r}, {name!r}, ...) here too"
        else:
            way = f"It is from {origin.distribution} {origin.version or '(unknown version)'}; install that"
        raise PluginNotFound(f"The {kind} {str(origin)!r} cannot be made here. {way}. ({error})") from error
    if kind == "encoder":
        return make_encoder(name, dict(origin.options))
    return make_energy(name if origin.member is None else f"{name}/{origin.member}", dict(origin.options), copies)


def entry_of(cls: type[Energy]) -> Entry | None:
    """Returns the entry that offers a class of energies; only entries of the class's own top-level package are imported to find out."""
    for record in REGISTRY.records(["energy"]):
        if record.state in ("failed", "shadowed") or record.value.split(":")[0].split(".")[0] != cls.__module__.split(".")[0]:
            continue
        entry = REGISTRY.entry("energy", record.qualified)
        with contextlib.suppress(PluginLoadError):
            if REGISTRY.load("energy", entry) is cls:
                return entry
    return None


def is_family(obj: Any) -> bool:
    """Returns whether an entry offers a family of energies."""
    return isinstance(obj, type) and issubclass(obj, EnergyFamily)


def family_of(entry: Entry, obj: Any, options: dict[str, Any]) -> EnergyFamily:
    """Returns the one instance for an entry and options."""
    try:
        key = (entry, json.dumps(options, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise OptionError(f"Options of the family {entry.name!r} are plain data, got {options}.") from error
    if key not in FAMILIES:
        FAMILIES.setdefault(key, _called(entry, obj, options))
    return FAMILIES[key]


def _member(entry: Entry, family: EnergyFamily, member: str | None) -> Energy:
    if member is not None and member not in family.members():
        name, known = f"{entry.name}/{member}", [f"{entry.name}/{m}" for m in family.members()]
        raise PluginNotFound(f"No energy {name!r} in the family {entry.name!r}.{nearest(name, known) or listed(known)}")
    return _checked("energy", entry, _shielded(entry, {}, lambda: family.load(member)))


def make(kind: str, entry: Entry, obj: Any, options: dict[str, Any]) -> Any:
    """Returns what an entry makes of some options, checked."""
    return _checked(kind, entry, _called(entry, obj, options))


def _checked(kind: str, entry: Entry, made: Any) -> Any:
    return check_made(entry, made, _REQUIRED[kind] if kind in _REQUIRED else REGISTRY.load("kind", REGISTRY.entry("kind", kind)))


def _called(entry: Entry, obj: Any, options: dict[str, Any]) -> Any:
    try:
        signature = inspect.signature(obj)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            signature.bind(**options)
        except TypeError as error:
            accepted = ", ".join(str(p) for p in signature.parameters.values()) or "no options"
            raise OptionError(f"{entry.name!r} takes ({accepted}), got ({', '.join(options)}): {error}.") from error
    return _shielded(entry, options, lambda: obj(**options))


def _shielded(entry: Entry, options: dict[str, Any], make: Callable[[], Any]) -> Any:
    """Makes an object; an error with options may be the caller's and passes, one without is the plug-in's."""
    try:
        with torch.inference_mode(False):  # tensors made in inference mode never have gradients, and families are kept
            return make()
    except ComposableEnergyError:
        raise
    except Exception as error:
        if options:
            raise
        raise broken(entry, f"making it raised {type(error).__name__}: {error}") from error
