"""Kinds of plug-ins: the classes of the objects that entry points of each kind name or build.

The classes are given by their paths and imported at first use: the registry lies below energies and samplers, and listing plug-ins does
not wait for torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in.

    Args:
        entry: What an entry point names: a `class` or a `function` that is handed out as it is, or a `builder`, a class or function that
            is called with options.
        classes: The classes, or their paths `module:name`, from which a class derives; what a builder returns is an instance of the first.
        get: The path of the function that returns a plug-in of this kind by name; empty for the general rule.
    """

    entry: Literal["class", "function", "builder"]
    classes: tuple[str | type, ...]
    get: str = ""

    def load_classes(self) -> tuple[type, ...]:
        """Imports and returns the classes."""
        return tuple(import_object(path) if isinstance(path, str) else path for path in self.classes)


KINDS: Mapping[str, Kind] = {
    "energy": Kind(
        "builder", ("composable_energy.energy:Energy", "composable_energy.catalog:EnergyFamily"), "composable_energy.catalog:get_energy"
    ),
    "sampler": Kind("class", ("composable_energy.sampling:Sampler",)),
    "encoder": Kind("builder", ("torch.nn:Module",), get="composable_energy.catalog:get_encoder"),
    "kernel": Kind("builder", ("composable_energy.sampling.kernels:Kernel",)),
    "estimator": Kind("function", ()),
    "loader": Kind("function", ()),
    "publisher": Kind("function", ()),
    "plot": Kind("function", ()),
    "command": Kind("class", ("composable_energy.registry.command:Command",)),
    "kind": Kind("class", ("builtins:object",)),
}
"""The library's own kinds. A package declares more by entry points of the kind `kind`: the name is the kind, the object the class of
which its entries build instances."""


def group_of(kind: str) -> str:
    """Returns the entry-point group of a kind: `composable_energy.samplers` for `sampler`."""
    return "composable_energy.energies" if kind == "energy" else f"composable_energy.{kind}s"


def import_object(path: str) -> Any:
    """Returns the object at a path `module:name`; the module itself for a path without a name."""
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in filter(None, attributes.split(".")):
        found = getattr(found, attribute)
    return found
