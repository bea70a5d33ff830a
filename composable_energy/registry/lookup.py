"""Asking for plug-ins by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from composable_energy.errors import OptionError, PluginNotFound
from composable_energy.registry.family import EnergyFamily
from composable_energy.registry.records import Entry, PluginRecord, group_of
from composable_energy.registry.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from composable_energy.energy import Energy
    from composable_energy.sampling import Sampler

__all__ = [
    "REGISTRY",
    "Registration",
    "get",
    "get_encoder",
    "get_energy",
    "get_factory",
    "get_family",
    "get_kernel",
    "get_recipe",
    "get_sampler",
    "get_world",
    "names",
    "plugins",
    "refresh",
    "register",
]

REGISTRY = Registry()
FAMILIES: dict[tuple[Any, str], EnergyFamily] = {}


def get(kind: str, name: str, /, **options: Any) -> Any:
    """Returns a plug-in of any kind by name.

    A package declares a kind by an entry point of the group `composable_energy.kinds`: its name is the kind, its object the class whose
    instances the entries of the group `composable_energy.<kind>s` make.

    Args:
        kind: Such as `energy`, `sampler`, `recipe`.
        name: Of an entry, `objects`; with a distribution in front, `acme-worlds:objects`.
        **options: What the entry takes.

    Returns:
        A class for samplers, commands and kinds; for all others what the entry makes with the options.

    Raises:
        OptionError: No package declares the kind, or the entry does not take an option.
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    if kind == "energy":
        return get_energy(name, **options)
    if kind == "encoder":
        return get_encoder(name, **options)
    _check_kind(kind)
    entry = REGISTRY.entry(kind, name)
    obj = REGISTRY.load(kind, entry)
    if kind in ("sampler", "command", "kind"):
        if options:
            raise OptionError(f"A {kind} is a class, which takes no options here; got {', '.join(options)}.")
        return obj
    from composable_energy.registry.making import make

    return make(kind, entry, obj, options)


def get_energy(name: str, /, **options: Any) -> Energy:
    """Returns an energy by name; it belongs to the caller, and changes to it reach no other.

    Members of one family, asked for together or apart, have equal parts, so that an expression counts their base once.

    Args:
        name: Of an entry, `bowl`; of a family's member, `faces/male`; with a distribution in front, `acme-energies:bowl`.
        **options: What the entry takes. Those of a family go to the family, and are plain data.

    Returns:
        The energy, with `origin` set.

    Raises:
        PluginNotFound: No plug-in offers the name, or the family has no such member.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: It does not take an option.
    """
    from composable_energy.registry.making import make_energy

    return make_energy(name, options, {})


def get_factory(kind: str, name: str, /) -> Any:
    """Returns the class or function behind an entry, without calling it.

    Args:
        kind: Such as `energy`, `sampler`, `recipe`.
        name: The name of an entry, as for `get`.

    Raises:
        OptionError: No package declares the kind.
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    _check_kind(kind)
    return REGISTRY.load(kind, REGISTRY.entry(kind, name))


def get_family(name: str, /, **options: Any) -> EnergyFamily:
    """Returns a family of energies by name; its `members()` are what `get_energy("family/member")` takes.

    Raises:
        PluginNotFound: No plug-in offers the name, or it is no family.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: It does not take an option.
    """
    from composable_energy.registry.making import family_of, is_family

    entry = REGISTRY.entry("energy", name)
    obj = REGISTRY.load("energy", entry)
    if not is_family(obj):
        raise PluginNotFound(f"The energy {name!r} is a single one and has no members.")
    return family_of(entry, obj, options)


def get_sampler(name: str, /) -> type[Sampler]:
    """Returns a class of samplers by name.

    Raises:
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    return REGISTRY.load("sampler", REGISTRY.entry("sampler", name))


def get_encoder(name: str, /, **options: Any) -> nn.Module:
    """Returns an encoder by name, with `origin` set; it belongs to the caller.

    Raises:
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: It does not take an option.
    """
    from composable_energy.registry.making import make_encoder

    return make_encoder(name, options)


def get_kernel(name: str, /) -> Any:
    """Returns a kernel by name; its `available()` says whether it can run here.

    Raises:
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    return get("kernel", name)


def get_recipe(name: str, /) -> Any:
    """Returns a recipe of training by name, if a package declares recipes; `composable_energy_training.open_recipe` also takes a file.

    Raises:
        OptionError: No package declares recipes.
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    return get("recipe", name)


def get_world(name: str, /, **options: Any) -> Any:
    """Returns a world by name: pictures whose content is known.

    Args:
        name: Of an entry, `objects`; with a distribution in front, `acme-worlds:objects`.
        **options: What the entry takes, such as `size`.

    Raises:
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: It does not take an option, or no package declares worlds.
    """
    return get("world", name, **options)


def names(kind: str) -> list[str]:
    """Returns the names of a kind of plug-in, sorted; those in conflict with their distributions. Nothing is imported.

    Raises:
        OptionError: No package declares the kind.
    """
    _check_kind(kind)
    return REGISTRY.names(kind)


def plugins(load: bool = False) -> list[PluginRecord]:
    """Returns one record for each entry point, by kind and then by name, those of this session first; nothing is imported.

    Args:
        load: Whether to import each and say in its `state` whether it works.
    """
    return REGISTRY.records(load=load)


def refresh() -> None:
    """Forgets what was found, so that a plug-in installed since is seen; what `register` took stays."""
    REGISTRY.refresh()
    FAMILIES.clear()


def register(kind: str, name: str, obj: Any) -> Registration:
    """Makes an object known by name in this session; it comes before entry points of that name.

    Args:
        kind: Such as `energy`, `sampler`, `recipe`; `kind` declares a kind.
        name: The name, of a-z, 0-9, - and _.
        obj: What an entry point may be; for an energy also `lambda: energy`.

    Returns:
        A context manager that takes it back at the end; without `with` it stays.

    Raises:
        OptionError: The kind is unknown.
        PluginLoadError: The object breaks the contract.
    """
    from composable_energy.registry.contract import check_entry

    _check_kind(kind)
    check_entry(kind, Entry(group_of(kind), name, getattr(obj, "__qualname__", repr(obj))), obj)
    return Registration(kind, name, obj)


class Registration:
    """What `register` returns: with `with`, the registry is as before at the end."""

    def __init__(self, kind: str, name: str, obj: Any) -> None:
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


def _check_kind(kind: str) -> None:
    kinds = REGISTRY.kinds()
    if kind not in kinds:
        raise OptionError(f"Unknown kind of plug-in {kind!r}; use one of {', '.join(kinds)}.")


def _forget_families(name: str) -> None:
    for key in [key for key in FAMILIES if key[0].name == name and key[0].distribution is None]:
        del FAMILIES[key]
