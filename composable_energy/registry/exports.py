"""Modules whose names are plug-ins: `composable_energy.samplers.HMC` is the class `HMC` that a package offers as a sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from composable_energy.registry.api import REGISTRY
from composable_energy.registry.kinds import group_of
from composable_energy.registry.records import PluginRecord
from composable_energy.suggestions import listed, nearest_names


def plugin_exports(module: str, kind: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the functions `__getattr__` and `__dir__` of a module with the classes or functions of all plug-ins of a kind.

    Each has the name of the class or function. Listing them imports no plug-in, using one imports its package.

    Args:
        module: The module's `__name__`.
        kind: The kind, such as `sampler`.
    """

    def offers() -> dict[str, list[PluginRecord]]:
        found: dict[str, list[PluginRecord]] = {}
        for record in REGISTRY.records([kind]):
            name = record.value.replace(":", ".").rpartition(".")[2]
            if record.group == group_of(kind) and record.state != "shadowed" and name.isidentifier():
                found.setdefault(name, []).append(record)
        return found

    def get_attribute(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        known = offers()
        if name not in known:
            raise AttributeError(f"No plug-in offers the {kind} {name!r} in {module}.{_suggest(name, known)}")
        records = known[name]
        own = [record for record in records if record.distribution is None]  # of this session, as everywhere in the registry
        if len({record.value for record in own or records}) > 1:
            forms = " or ".join(f"composable_energy.get({kind!r}, {record.qualified!r})" for record in records)
            raise AttributeError(f"The {kind} {name!r} is offered by several plug-ins; write {forms}.")
        return REGISTRY.load(kind, REGISTRY.entry(kind, (own or records)[0].qualified))

    def list_attributes() -> list[str]:
        return sorted(offers())

    return get_attribute, list_attributes


def _suggest(name: str, known: dict[str, list[PluginRecord]]) -> str:
    """Returns a sentence with the nearest names, by the names of classes and of entries."""
    words = {word: attribute for attribute, records in known.items() for word in (attribute, *(row.name for row in records))}
    close = dict.fromkeys(words[word] for word in nearest_names(name, words))
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else listed(sorted(known))
