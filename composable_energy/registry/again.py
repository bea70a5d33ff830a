"""From what was made back to what makes it: what saving needs of the registry."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from composable_energy.errors import PluginLoadError, PluginNotFound
from composable_energy.registry.lookup import REGISTRY, get_encoder, get_energy
from composable_energy.registry.records import Entry, Kind, Origin

if TYPE_CHECKING:
    from composable_energy.energy import Energy

__all__ = ["entry_of", "make_again"]


def make_again(kind: Kind, origin: Origin) -> Any:
    """Returns an energy or encoder like the one of an origin, perhaps one that others hold too.

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
        return get_encoder(name, **origin.options)
    return get_energy(name if origin.member is None else f"{name}/{origin.member}", **origin.options)


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
