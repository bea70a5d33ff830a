"""Asking for plug-ins by name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from composable_energy.errors import ComposableEnergyError, OptionError, PluginNotFound
from composable_energy.registry.family import EnergyFamily
from composable_energy.registry.records import GROUPS, Entry, Kind, Origin, PluginRecord
from composable_energy.registry.registry import Registry, listed, nearest

if TYPE_CHECKING:
    from torch import nn

    from composable_energy.data import World
    from composable_energy.energy import Energy
    from composable_energy.sampling import Sampler
    from composable_energy.training import Recipe

__all__ = [
    "REGISTRY",
    "Registration",
    "get_encoder",
    "get_energy",
    "get_family",
    "get_kernel",
    "get_recipe",
    "get_sampler",
    "get_world",
    "plugins",
    "refresh",
    "register",
]

REGISTRY = Registry()
_FAMILIES: dict[tuple[Any, str], EnergyFamily] = {}


def get_energy(name: str, **options: Any) -> Energy:
    """Returns an energy by name.

    Args:
        name: Of an entry, `bowl`; of a family's member, `faces/male`; with a distribution in front, `acme-energies:bowl`.
        **options: What the entry takes. Those of a family go to the family, and are plain data.

    Returns:
        The energy, with `origin` set. Members of one family share their parts, and two calls may return one object.

    Raises:
        PluginNotFound: No plug-in offers the name, or the family has no such member.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: It does not take an option.
    """
    found, member = _split(name)
    entry = REGISTRY.entry("energy", found)
    obj = REGISTRY.load("energy", entry)
    if _is_family(obj):
        energy = _member(entry, _family(entry, obj, options), member)
    elif member is None:
        energy = _made("energy", entry, obj, options)
    else:
        raise PluginNotFound(f"The energy {found!r} has no members, so there is no {name!r}; ask for {found!r}.")
    _mark("energy", energy, Origin(entry.name, member, dict(options), entry.distribution, entry.version))
    return energy


def get_family(name: str, **options: Any) -> EnergyFamily:
    """Returns a family of energies by name; its `members()` are what `get_energy("family/member")` takes.

    Raises:
        PluginNotFound: No plug-in offers the name, or it is no family.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: It does not take an option.
    """
    entry = REGISTRY.entry("energy", name)
    obj = REGISTRY.load("energy", entry)
    if not _is_family(obj):
        raise PluginNotFound(f"The energy {name!r} is a single one and has no members.")
    return _family(entry, obj, options)


def get_sampler(name: str) -> type[Sampler]:
    """Returns a class of samplers by name.

    Raises:
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    return REGISTRY.load("sampler", REGISTRY.entry("sampler", name))


def get_encoder(name: str, **options: Any) -> nn.Module:
    """Returns an encoder by name, with `origin` set.

    Raises:
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: It does not take an option.
    """
    entry = REGISTRY.entry("encoder", name)
    encoder = _made("encoder", entry, REGISTRY.load("encoder", entry), options)
    _mark("encoder", encoder, Origin(entry.name, None, dict(options), entry.distribution, entry.version))
    return encoder


def get_kernel(name: str) -> Any:
    """Returns a kernel by name; its `available()` says whether it can run here.

    Raises:
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    entry = REGISTRY.entry("kernel", name)
    return _made("kernel", entry, REGISTRY.load("kernel", entry), {})


def get_recipe(name: str) -> Recipe:
    """Returns a recipe of training by name; `composable_energy.training.open_recipe` also takes a file.

    Raises:
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    entry = REGISTRY.entry("recipe", name)
    return _made("recipe", entry, REGISTRY.load("recipe", entry), {})


def get_world(name: str, **options: Any) -> World:
    """Returns a world by name: pictures whose content is known.

    Args:
        name: Of an entry, `objects`; with a distribution in front, `acme-worlds:objects`.
        **options: What the entry takes, such as `size`.

    Raises:
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: It does not take an option.
    """
    entry = REGISTRY.entry("world", name)
    return _made("world", entry, REGISTRY.load("world", entry), options)


def plugins(load: bool = False) -> list[PluginRecord]:
    """Returns one record for each entry point, by kind and then by name, those of this session first; nothing is imported.

    Args:
        load: Whether to import each and say in its `state` whether it works.
    """
    return REGISTRY.records(load=load)


def refresh() -> None:
    """Forgets what was found, so that a plug-in installed since is seen; what `register` took stays."""
    REGISTRY.refresh()
    _FAMILIES.clear()


def register(kind: Kind, name: str, obj: Any) -> Registration:
    """Makes an object known by name in this session; it comes before entry points of that name.

    Args:
        kind: `energy`, `sampler`, `encoder`, `kernel`, `recipe` or `world`.
        name: The name, of a-z, 0-9, - and _.
        obj: What an entry point may be; for an energy also `lambda: energy`.

    Returns:
        A context manager that takes it back at the end; without `with` it stays.

    Raises:
        OptionError: The kind is unknown.
        PluginLoadError: The object breaks the contract.
    """
    from composable_energy.registry.contract import check_entry

    if kind not in GROUPS:
        raise OptionError(f"Unknown kind of plug-in {kind!r}; use one of {', '.join(GROUPS)}.")
    check_entry(kind, Entry(GROUPS[kind], name, getattr(obj, "__qualname__", repr(obj))), obj)
    return Registration(kind, name, obj)


class Registration:
    """What `register` returns: with `with`, the registry is as before at the end."""

    def __init__(self, kind: Kind, name: str, obj: Any) -> None:
        self._key = (kind, name)
        self._before = REGISTRY.registered.get(self._key)
        self._object = obj
        REGISTRY.registered[self._key] = obj
        _forget_families(name)

    def __enter__(self) -> Any:
        return self._object

    def __exit__(self, *exception: object) -> None:
        if self._before is None:
            REGISTRY.registered.pop(self._key, None)
        else:
            REGISTRY.registered[self._key] = self._before
        _forget_families(self._key[1])


def _split(name: str) -> tuple[str, str | None]:
    entry, slash, member = name.partition("/")
    return entry, member if slash else None


def _is_family(obj: Any) -> bool:
    return isinstance(obj, type) and issubclass(obj, EnergyFamily)


def _family(entry: Entry, obj: Any, options: dict[str, Any]) -> EnergyFamily:
    """Returns the one instance for an entry and options."""
    try:
        key = (entry, json.dumps(options, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise OptionError(f"Options of the family {entry.name!r} are plain data, got {options}.") from error
    if key not in _FAMILIES:
        _FAMILIES.setdefault(key, _called(entry, obj, options))
    return _FAMILIES[key]


def _member(entry: Entry, family: EnergyFamily, member: str | None) -> Energy:
    from composable_energy.registry.contract import check_made

    if member is not None and member not in family.members():
        name, known = f"{entry.name}/{member}", [f"{entry.name}/{m}" for m in family.members()]
        raise PluginNotFound(f"No energy {name!r} in the family {entry.name!r}.{nearest(name, known) or listed(known)}")
    return check_made("energy", entry, _shielded(entry, {}, lambda: family.load(member)))


def _made(kind: Kind, entry: Entry, obj: Any, options: dict[str, Any]) -> Any:
    from composable_energy.registry.contract import check_made

    return check_made(kind, entry, _called(entry, obj, options))


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
    import torch

    from composable_energy.registry.contract import broken

    try:
        with torch.inference_mode(False):  # tensors of inference mode have no gradients for ever, and families are kept
            return make()
    except ComposableEnergyError:
        raise
    except Exception as error:
        if options:
            raise
        raise broken(entry, f"making it raised {type(error).__name__}: {error}") from error


def _mark(kind: Kind, made: nn.Module, origin: Origin) -> None:
    from composable_energy.registry.parts import mark

    mark(kind, made, origin)


def _forget_families(name: str) -> None:
    for key in [key for key in _FAMILIES if key[0].name == name and key[0].distribution is None]:
        del _FAMILIES[key]
