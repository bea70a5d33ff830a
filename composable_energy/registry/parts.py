"""Which modules are parts of what the registry made, so that energies built by hand over them can be saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from composable_energy.registry.records import Kind, Origin

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Part", "mark", "part_of"]


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


_PARTS: WeakKeyDictionary[nn.Module, Part] = WeakKeyDictionary()


def mark(kind: Kind, made: nn.Module, origin: Origin) -> None:
    """Notes where an object and its parts come from; a part of several objects stays that of the first."""
    made.origin = origin  # pyright: ignore[reportArgumentType]
    for path, module in made.named_modules():
        if path:
            _PARTS.setdefault(module, Part(kind, origin, path))
        else:
            _PARTS[module] = Part(kind, origin, path)


def part_of(module: nn.Module) -> Part | None:
    """Returns what a module is a part of; None if the registry did not make it."""
    return _PARTS.get(module)
