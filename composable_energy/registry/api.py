"""Functions of the registry: get plug-ins by name, list them, register objects of a session."""

from __future__ import annotations

from typing import Any

from composable_energy.errors import OptionError
from composable_energy.registry.build import build
from composable_energy.registry.contract import check_built, check_entry
from composable_energy.registry.kinds import group_of, import_object
from composable_energy.registry.records import Entry, PluginRecord
from composable_energy.registry.registry import Registry

REGISTRY = Registry()


def get(kind: str, name: str, /, **options: Any) -> Any:
    """Returns a plug-in by name: `get("energy", "faces/male")`, `get("encoder", "comet", weights="sprites")`, `get("sampler", "hmc")`.

    What it builds belongs to the caller: changes to it affect no other object. Members of one family of energies have equal bases, also
    from separate calls, so that an expression counts the base once.

    Args:
        kind: Such as `energy`, `sampler`, `recipe`.
        name: Of an entry, `objects`; of a member of a family, `faces/male`; with a distribution in front, `acme-worlds:objects`.
        **options: What the entry takes; those of a family are plain data.

    Returns:
        A class for samplers, commands and kinds, a function for estimators, loaders and publishers; for all others what the entry
        makes with the options.

    Raises:
        OptionError: No package declares the kind, or the entry does not take an option.
        PluginNotFound: No plug-in offers the name.
        ExtraNotInstalled: The name comes with an extra that is not installed.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    rule = REGISTRY.kind(kind)
    if rule.get:
        return import_object(rule.get)(name, **options)
    entry = REGISTRY.entry(kind, name)
    obj = REGISTRY.load(kind, entry)
    if rule.entry == "builder":
        return check_built(rule, entry, build(entry, obj, options))
    if options:
        raise OptionError(f"The {kind} {name!r} is a {rule.entry}, which takes no options here; got {', '.join(options)}.")
    return obj


def get_factory(kind: str, name: str, /) -> Any:
    """Returns the class or function behind an entry, without calling it.

    Args:
        kind: Such as `energy`, `sampler`, `recipe`.
        name: The name of an entry, as for `get`.

    Raises:
        OptionError: No package declares the kind.
        PluginNotFound: No plug-in offers the name.
        ExtraNotInstalled: The name comes with an extra that is not installed.
        PluginConflictError: Several do.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    REGISTRY.kind(kind)
    return REGISTRY.load(kind, REGISTRY.entry(kind, name))


def get_own(kind: str, name: str, /, **options: Any) -> Any:
    """Returns the library's own plug-in of a name, for its defaults: a package that offers the same name does not replace it.

    An object of `register` takes precedence, and any package may offer a name that the library does not have.

    Args:
        kind: Such as `sampler`.
        name: The name, without a distribution.
        **options: What the entry takes.

    Raises:
        PluginNotFound: No plug-in offers the name.
        PluginConflictError: Several do, and none of them is the library's own.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: It does not take an option.
    """
    REGISTRY.kind(kind)
    return get(kind, REGISTRY.own(kind, name), **options)


def own_name(kind: str, name: str) -> str:
    """Returns the form of a name that stands for the library's own plug-in; the name itself where only one package offers it.

    Args:
        kind: Such as `energy`.
        name: The name, without a distribution.
    """
    offered = {row.value for row in REGISTRY.records([kind]) if row.name == name}
    return REGISTRY.own(kind, name) if len(offered) > 1 else name


def names(kind: str) -> list[str]:
    """Returns the names of a kind of plug-in, sorted; those in conflict with their distributions. Nothing is imported.

    Raises:
        OptionError: No package declares the kind.
    """
    REGISTRY.kind(kind)
    return REGISTRY.names(kind)


def plugins(load: bool = False, of: str | None = None) -> list[PluginRecord]:
    """Returns one record for each entry point, by kind and then by name, those of this session first; nothing is imported.

    Args:
        load: Whether to import each and say in its `state` whether it works.
        of: The distribution of those that are imported; None imports all.
    """
    return REGISTRY.records(load=load, of=of)


def refresh() -> None:
    """Scans entry points again at the next use, so that newly installed plug-ins are found; objects of `register` stay."""
    REGISTRY.refresh()


def register(kind: str, name: str, obj: Any) -> Registration:
    """Registers an object under a name for this session; it takes precedence over entry points of that name.

    Args:
        kind: Such as `energy`, `sampler`, `recipe`; `kind` declares a kind.
        name: The name, of a-z, 0-9, - and _.
        obj: What an entry point may be; for an energy also `lambda: energy`.

    Returns:
        A context manager that removes it at the end; without `with` it stays.

    Raises:
        OptionError: The kind is unknown.
        PluginLoadError: The object breaks the contract.
    """
    check_entry(REGISTRY.kind(kind), Entry(group_of(kind), name, getattr(obj, "__qualname__", repr(obj))), obj)
    return Registration(kind, name, obj)


class Registration:
    """A registration of `register`; as a context manager it restores the previous state on exit."""

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


def _forget_families(name: str) -> None:
    for key in [key for key in REGISTRY.families if key[0].name == name and key[0].distribution is None]:
        del REGISTRY.families[key]
