"""Entry points: what installed packages declare, and what each kind of plug-in must be.

`entrypoints` reads the metadata, and stops at the first malformed file, even one of an unrelated package, or drops entries that it cannot
parse. In these cases the standard library reads the distributions one by one, so that a bad file hides only its own entries. The classes of
kinds are given by their paths and imported at first use, so that listing plug-ins does not wait for torch.
"""

import argparse
import configparser
import inspect
import re
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple

from composable_energy.errors import FILTERS, PluginLoadError

FIRST_PARTY = "composable-energy"
"""The distribution of the library's own plug-ins."""
API_VERSION = 1
"""Number of the contract. A breaking change gets a new number. The class attribute `api_version` of a plug-in is the number
that it was written for, 1 by default; the current number and the previous one are accepted."""

_NAME = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class PluginRecord:
    """An entry point as its distribution declares it, and whether it works: one row of `plugins()`.

    Attributes:
        group: Its entry-point group; empty for a distribution whose metadata cannot be read.
        name: The name for `get`: `distribution:name` where the name alone stands for another object, or for none.
        value: `module:object`.
        distribution: The canonical name of the distribution that offers it; None for an object that `register` took.
        version: The distribution's version.
        state: Whether it was loaded and keeps the contract.
        error: Why it failed.
        extra: The extra of the distribution that installs the module, as in `module:object [extra]`; empty if it needs none.
    """

    group: str
    name: str
    value: str
    distribution: str | None = None
    version: str | None = None
    state: Literal["not-loaded", "ok", "failed"] = "not-loaded"
    error: str | None = None
    extra: str = ""

    @property
    def qualified(self) -> str:
        """The form that always resolves: `distribution:name`."""
        return self.name if self.distribution is None or ":" in self.name else f"{self.distribution}:{self.name}"

    @property
    def awaits_extra(self) -> bool:
        """Whether the extra that installs the module is missing."""
        try:
            return bool(self.extra) and find_spec(re.split("[.:]", self.value)[0]) is None
        except (ImportError, ValueError):  # no name of a module; importing it tells why
            return False

    def __str__(self) -> str:
        owner = f"{self.distribution} {self.version or '(unknown version)'}" if self.distribution else "this session"
        return f"{self.name!r} ({self.value}, from {owner})"


def canonical(distribution: str) -> str:
    """Returns the normalised name of a distribution: `My_Package` and `my.package` become `my-package`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def scan(group: str) -> list[PluginRecord]:
    """Returns what the distributions on `sys.path` declare in a group, by name and distribution, and those that cannot be read."""
    try:
        import entrypoints

        with FILTERS, warnings.catch_warnings():
            warnings.simplefilter("error")  # it drops what it cannot parse with no more than a warning
            found = []
            point: Any
            for point in entrypoints.get_group_all(group):
                value, extra = f"{point.module_name}:{point.object_name}".rstrip(":"), ",".join(point.extras or ())
                found.append(PluginRecord(group, point.name, value, canonical(point.distro.name), point.distro.version, extra=extra))
    except Exception:
        found = [record for record in _read_all(tuple(sys.path)) if record.group in (group, "")]
    return sorted(dict.fromkeys(found), key=lambda r: (r.name, r.distribution or "", r.value))


@lru_cache(maxsize=1)
def _read_all(path: tuple[str, ...]) -> tuple[PluginRecord, ...]:
    """Returns the entries of all groups; of two distributions with one name the first on the path counts."""
    owners: dict[str, metadata.Distribution] = {}
    for owner in metadata.distributions(path=list(path)):
        owners.setdefault(canonical(owner.metadata["Name"] or "unknown"), owner)
    return tuple(record for name, owner in owners.items() for record in _read(name, owner))


def _read(name: str, owner: metadata.Distribution) -> Iterator[PluginRecord]:
    try:  # the library skips what is malformed, the parser raises
        for point in owner.entry_points:
            if point.group.startswith("composable_energy."):
                value, _, extra = point.value.replace(" ", "").partition("[")
                yield PluginRecord(point.group, point.name, value, name, owner.version, extra=extra.rstrip("]"))
        configparser.ConfigParser(delimiters=("=",), interpolation=None).read_string(owner.read_text("entry_points.txt") or "")
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        yield PluginRecord("", "", "", name, owner.version, "failed", f"its entry_points.txt cannot be read: {reason}")


class Command(ABC):
    """Abstract command of `composable-energy`; an entry point of the group `composable_energy.commands` names a subclass.

    `composable-energy --help` imports the module of each command: import slow modules, such as torch, in `run`.

    Attributes:
        summary: What the command does, in one line.
        description: The text of `composable-energy NAME --help`; the summary where it is empty.
    """

    summary: str
    description: str = ""

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the arguments of the command to its parser."""

    @abstractmethod
    def run(self, arguments: argparse.Namespace) -> int:
        """Runs the command; returns 0, or 2 for bad input. `ComposableEnergyError` and `OSError` are printed as one line, with code 2."""


class Kind(NamedTuple):
    """What an entry point names: a class of one of `classes`, a function, or a builder of instances of the first class."""

    entry: Literal["class", "function", "builder"]
    classes: tuple[str | type, ...] = ()

    def load_classes(self) -> tuple[type, ...]:
        """Imports and returns the classes."""
        return tuple(resolve_name(path) if isinstance(path, str) else path for path in self.classes)


KINDS: Mapping[str, Kind] = {
    "energy": Kind("builder", ("composable_energy.energies.energy:Energy", "composable_energy.registry.catalog:EnergyFamily")),
    "sampler": Kind("class", ("composable_energy.sampling:Sampler",)),
    "encoder": Kind("builder", ("torch.nn:Module",)),
    "kernel": Kind("builder", ("composable_energy.sampling.kernels:Kernel",)),
    "estimator": Kind("function"),
    "loader": Kind("function"),
    "publisher": Kind("function"),
    "plot": Kind("function"),
    "command": Kind("class", (Command,)),
    "kind": Kind("class"),
}
"""The library's own kinds. A package declares more by entry points of the kind `kind`: the name is the kind, the object the class of
which its entries build instances."""


def group_of(kind: str) -> str:
    """Returns the entry-point group of a kind: `composable_energy.samplers` for `sampler`."""
    return "composable_energy.energies" if kind == "energy" else f"composable_energy.{kind}s"


def plugin_error(entry: PluginRecord, reason: str) -> PluginLoadError:
    """Returns the error of a plug-in that breaks the contract or does not load."""
    leave = f"upgrade or uninstall {entry.distribution}, or leave it out with COMPOSABLE_ENERGY_PLUGINS; all others keep working"
    advice = "" if entry.distribution is None else f" To continue: {leave}."
    return PluginLoadError(f"Plug-in {entry} in {entry.group} cannot be used: {reason}.{advice}")


def check_entry(kind: Kind, entry: PluginRecord, obj: Any) -> None:
    """Raises `PluginLoadError` unless the object of an entry point keeps the contract of its kind."""
    classes, version, oldest = kind.load_classes(), getattr(obj, "api_version", 1), max(API_VERSION - 1, 1)
    module: Any = getattr(sys.modules.get("torch.nn"), "Module", ())  # without torch there is no module
    is_class, wanted = isinstance(obj, type), ""
    if kind.entry == "function" and is_class:
        wanted = "a function"
    elif not issubclass(obj, classes or object) if is_class else kind.entry == "class":
        wanted = f"a subclass of {' or '.join(cls.__name__ for cls in classes)}" if classes else "a class"
    elif not callable(obj) or isinstance(obj, module):
        wanted = "a class or a function that makes an object"
    if not (isinstance(entry.name, str) and _NAME.fullmatch(entry.name)):
        raise plugin_error(entry, "its name has characters other than a-z, 0-9, - and _")
    if type(version) is not int or not oldest <= version <= API_VERSION:
        raise plugin_error(entry, f"it needs plug-in contract {version!r}, this composable-energy supports {oldest} to {API_VERSION}")
    if wanted:
        raise plugin_error(entry, f"a plug-in of this group is {wanted}, got {described(obj)}")
    if classes and inspect.isabstract(obj):
        raise plugin_error(entry, f"{described(obj)} does not implement {', '.join(sorted(getattr(obj, '__abstractmethods__', ())))}")


def described(obj: Any) -> str:
    """Returns in words what an object is."""
    return f"the class {obj.__qualname__}" if isinstance(obj, type) else f"an object of type {type(obj).__name__}"
