"""Which modules are parts of what the registry made, so that energies built by hand over them can be saved.

Each module carries its note, so that a copy and a pickle carry it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from composable_energy.registry.records import Kind, Origin

__all__ = ["Part", "mark", "part_of"]

_NOTE = "_composable_energy_part"


class Part(NamedTuple):
    """A module inside an object that the registry made.

    Args:
        kind: Of the object.
        origin: How it was made.
        path: Dotted, from the object; empty for the object itself.
    """

    kind: Kind
    origin: Origin
    path: str


def mark(kind: Kind, made: nn.Module, origin: Origin) -> None:
    """Notes where an object and its parts come from; a part of several objects stays that of the first.

    Modules that it got as options are not its own.
    """
    made.origin = origin  # pyright: ignore[reportArgumentType]
    vars(made)[_NOTE] = Part(kind, origin, "")
    foreign = set(_modules_in(origin.options))
    for path, module in made.named_modules():
        if path and module not in foreign:
            vars(module).setdefault(_NOTE, Part(kind, origin, path))


def part_of(module: nn.Module) -> Part | None:
    """Returns what a module is a part of; None if the registry did not make it."""
    return vars(module).get(_NOTE)


def _modules_in(value: Any) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield from value.modules()
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _modules_in(item)
