"""Energies and encoders by name; each call returns a new object with its origin. And which energies are installed."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import Origin, inherit_token, mark_origin
from composable_energy.errors import ComposableEnergyError, OptionError, PluginLoadError, PluginNotFound
from composable_energy.options import describe_error, listed, nearest, plain_values, printable, text_table
from composable_energy.registry.build import KINDS, build, check_built, check_stored, guarded, plugin_error
from composable_energy.registry.entries import FIRST_PARTY, PluginRecord
from composable_energy.registry.registry import find, get_factory, load, names, plugins, records, registered

_GROUP = "composable_energy.energies"
_FAMILIES: dict[tuple[PluginRecord, Any, str], EnergyFamily] = {}


class EnergyFamily(ABC):
    """Abstract family of related energies, such as the attributes of one kind of picture.

    An entry point of the group `composable_energy.energies` may be a subclass. The registry builds and keeps one instance for each set of
    options; it holds what its members share, such as base and decoder. `get` returns copies. Copies of one base are the same
    energy while their numbers are equal, so that an expression counts it once. Only `load` reads weights.

    Attributes:
        comes_trained: Whether the members have trained weights; None if there is nothing to train.

    Example:
        >>> import composable_energy as ce
        >>> class Bowls(ce.EnergyFamily):
        ...     def members(self):
        ...         return ("narrow", "wide")
        ...
        ...     def load(self, member):
        ...         width = {None: 1.0, "narrow": 0.5, "wide": 2.0}[member]
        ...         return ce.as_energy(lambda x: (x / width).square().sum(1) / 2, name=member or "bowl")
        >>> with ce.register("energy", "bowls", Bowls):
        ...     print(ce.get("energy", "bowls/wide"))
        wide
    """

    comes_trained: ClassVar[bool | None] = None

    @abstractmethod
    def members(self) -> tuple[str, ...]:
        """Returns the names of the members."""

    @abstractmethod
    def load(self, member: str | None) -> Energy:
        """Returns the energy of a member, or for None that of the family (its base).

        Args:
            member: One of `members()`, or None. A family without an energy of its own raises `PluginNotFound` for None.
        """


def build_energy(name: str, /, **options: Any) -> Energy:
    """Returns a new energy by name, with `origin` set; `get` calls it.

    Members of one family have equal bases, also from separate calls, so that an expression counts the base once.

    Args:
        name: An entry, `bowl`; a member of a family, `faces/male`; or an entry of a distribution, `acme-energies:bowl`.
        **options: Options of the entry; those of a family must be plain data.
    """
    return _build_energy(name, options, {})


def members_of(name: str, /) -> tuple[str, ...]:
    """Returns the names of the members of a family of energies; imports its module.

    Raises:
        PluginNotFound: No plug-in offers the name, or it is not a family.
        PluginConflictError: Several plug-ins offer it.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    entry = _entry(name)
    obj = load("energy", entry)
    if not _is_family(obj):
        raise PluginNotFound(f"The energy {name!r} is not a family and has no members.")
    members = guarded(entry, {}, lambda: tuple(_family(entry, obj, {}).members()))
    if not all(isinstance(member, str) for member in members):
        raise plugin_error(entry, "its members are not names")
    return members


def build_encoder(name: str, /, **options: Any) -> nn.Module:
    """Returns a new encoder by name, with `origin` set; `get` calls it."""
    entry = find("encoder", name)
    origin = Origin(entry.name, None, options, entry.distribution, entry.version)
    with inherit_token(origin):
        encoder = check_built(KINDS["encoder"], entry, build(entry, load("encoder", entry), options))
    return _copy_built("encoder", entry, encoder, origin, {})


def own_members() -> list[str]:
    """Returns the members of the library's own families and of those of this session, such as `plane/ring`; imports their modules."""
    found = []
    for record in records("energy"):
        if record.distribution in (None, FIRST_PARTY) and record.state != "shadowed":
            with contextlib.suppress(ComposableEnergyError):
                entry = find("energy", record.qualified)
                if _is_family(load("energy", entry)):
                    found += [f"{record.name}/{member}" for member in members_of(record.qualified)]
    return found


def _entry(name: str) -> PluginRecord:
    """Returns the entry of an energy; an error suggests members of families where no entry is near."""
    try:
        return find("energy", name)
    except PluginNotFound as error:
        near = "" if nearest(name, names("energy")) else nearest(name, own_members())
        if not near:
            raise
        raise PluginNotFound(f"No plug-in offers the energy {name!r}.{near}") from error


def _build_energy(name: str, options: dict[str, Any], copies: dict[int, Any]) -> Energy:
    """Returns a new energy by name; calls with one memo `copies` share their parts."""
    found, slash, member = name.partition("/")
    entry = _entry(found)
    obj = load("energy", entry)
    origin = Origin(entry.name, member if slash else None, options, entry.distribution, entry.version)
    with inherit_token(origin):
        if _is_family(obj):
            energy = _member(entry, _family(entry, obj, options), origin.member)
        elif not slash:
            energy = check_built(KINDS["energy"], entry, build(entry, obj, options))
        else:
            raise PluginNotFound(f"The energy {found!r} has no members, so there is no {name!r}; use {found!r}.")
    return _copy_built("energy", entry, energy, origin, copies)


def _copy_built(kind: str, entry: PluginRecord, built: Any, origin: Origin, copies: dict[int, Any]) -> Any:
    """Returns a copy of a built object, or the object if its class has just built it; modules among the options are not copied."""
    passed = {inner for value in plain_values(origin.options) if isinstance(value, nn.Module) for inner in value.modules()}
    if type(built) is not load(kind, entry):
        copies.update((id(module), module) for module in passed)
        try:
            with torch.inference_mode(False):
                built = copy.deepcopy(built, copies)
        except Exception as error:
            raise plugin_error(entry, f"the object that it built cannot be copied ({describe_error(error)})") from error
    mark_origin(kind, built, origin, passed)
    return built


def rebuild_object(kind: str, origin: Origin, copies: dict[int, Any]) -> nn.Module:
    """Returns an energy or encoder built again from its origin.

    Args:
        kind: `energy` or `encoder`.
        origin: The entry and options.
        copies: A memo; objects built with one memo share their parts.

    Raises:
        PluginNotFound: The distribution that built it does not offer it here, and nothing is registered under the name.
        PluginConflictError: Several plug-ins offer it.
        PluginLoadError: The plug-in fails to load or breaks the contract.
        OptionError: The plug-in does not take an option, or it may be a path.
    """
    try:
        name = check_origin(kind, origin)
    except PluginNotFound as error:
        if origin.distribution is None:
            way = (
                f"It was registered in the session that wrote it; use composable_energy.register({kind!r}, {origin.entry!r}, ...) here too"
            )
        else:
            way = f"It is from {origin.distribution} {origin.version or '(unknown version)'}; install that"
        raise PluginNotFound(f"The {kind} {str(origin)!r} cannot be built here. {way}. ({error})") from error
    if kind == "encoder":
        return build_encoder(name, **dict(origin.options))
    return _build_energy(name if origin.member is None else f"{name}/{origin.member}", dict(origin.options), copies)


def check_origin(kind: str, origin: Origin) -> str:
    """Returns the name of the entry that rebuilds an object of a saved file, after a check of its options.

    Raises:
        PluginNotFound: The distribution that built it does not offer it here, and nothing is registered under the name.
        PluginConflictError: Several plug-ins offer it.
        PluginLoadError: The plug-in fails to load.
        OptionError: An option may be a path or an address, which no saved file may give.
    """
    name = origin.entry
    if origin.distribution is not None and (kind, name) not in registered:
        name = f"{origin.distribution}:{name}"
    entry = find(kind, name)
    check_stored(entry, load(kind, entry), origin.options)
    return name


def entry_of(cls: type[Energy]) -> PluginRecord | None:
    """Returns the entry that offers a class of energies; imports only entries of the class's top-level package."""
    for record in records("energy"):
        if record.state in ("failed", "shadowed") or record.value.split(":")[0].split(".")[0] != cls.__module__.split(".")[0]:
            continue
        entry = find("energy", record.qualified)
        with contextlib.suppress(PluginLoadError):
            if load("energy", entry) is cls:
                return entry
    return None


def _is_family(obj: Any) -> bool:
    """Returns whether an entry offers a family of energies."""
    return isinstance(obj, type) and issubclass(obj, EnergyFamily)


def _family(entry: PluginRecord, obj: Any, options: dict[str, Any]) -> EnergyFamily:
    """Returns the instance for an entry and options; there is one for each, and for each default dtype and device of torch."""
    try:
        surroundings = f"{torch.get_default_dtype()} {torch.get_default_device()}"  # weights are made in these
        key = (entry, obj, f"{json.dumps(options, sort_keys=True)} {surroundings}")
    except (TypeError, ValueError) as error:
        raise OptionError(f"Options of the family {entry.name!r} must be plain data, got {options}.") from error
    if key not in _FAMILIES:
        _FAMILIES.setdefault(key, build(entry, obj, options))
    return _FAMILIES[key]


def _member(entry: PluginRecord, family: EnergyFamily, member: str | None) -> Energy:
    if member is not None and member not in (members := guarded(entry, {}, lambda: tuple(family.members()))):
        name, names = f"{entry.name}/{member}", [f"{entry.name}/{m}" for m in members]
        raise PluginNotFound(f"No energy {name!r} in the family {entry.name!r}.{nearest(name, names) or listed(names)}")
    return check_built(KINDS["energy"], entry, guarded(entry, {}, lambda: family.load(member)))


# What is installed --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnergyInfo:
    """An installed energy, or family of energies.

    Attributes:
        name: The name for `load` and expressions.
        distribution: The package that offers it; None for an energy of this session.
        summary: What it is, in one line.
        trained: Whether it comes with trained weights. False for a network with random ones; None if there is nothing to train, or its
            package does not say.
        needs: The arguments without a default, which `load` must be given.
        members: The names of the members of a family.
        error: Why it cannot be used; None if it can.
    """

    name: str
    distribution: str | None = None
    summary: str = ""
    trained: bool | None = None
    needs: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    error: str | None = None

    @property
    def state(self) -> str:
        """One of `trained`, `untrained`, `needs ...` and `failed`; empty for an energy that is ready without training."""
        if self.error is not None:
            return "failed"
        states = {True: "trained", False: "untrained", None: ""}[self.trained]
        return ", ".join(filter(None, [states, f"needs {', '.join(self.needs)}" if self.needs else ""]))

    @property
    def line(self) -> str:
        """The summary with the number of members, or the error."""
        if self.error is not None:
            return self.error
        count = len(self.members)
        return self.summary + (f" ({count} members, such as {self.name}/{self.members[0]})" if count else "")


class EnergyTable(tuple[EnergyInfo, ...]):
    """The installed energies, those of this session first, then by name; prints as a table. Its items are found by number or by name."""

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        found = next((row for row in self if row.name == key), None)
        if found is None:
            known = [row.name for row in self]
            raise PluginNotFound(f"No plug-in offers the energy {key!r}.{nearest(key, known) or listed(known)}")
        return found

    def __str__(self) -> str:
        if not self:
            return "No energies are installed; `composable_energy.plugins()` shows what was found."
        return text_table(("energy", "state", "what it is"), [(row.name, row.state, row.line) for row in self])

    __repr__ = __str__


def installed(records: Iterable[PluginRecord] | None = None) -> EnergyTable:
    """Returns the installed energies with one line each, and whether they are trained.

    It imports the packages that offer them, and neither builds energies nor reads weights.

    Args:
        records: Records of `plugins()` of which the energies are described; None takes all.

    Example:
        >>> import composable_energy as ce
        >>> ce.installed()["faces"].state
        'trained'
        >>> ce.installed()["igebm-mnist"].state
        'untrained'
    """
    rows = plugins() if records is None else records
    return EnergyTable(_describe(record) for record in rows if record.group == _GROUP and record.state != "shadowed")


def _describe(record: PluginRecord) -> EnergyInfo:
    name = record.qualified if record.state == "conflict" else record.name
    try:
        obj = get_factory("energy", name)
    except ComposableEnergyError as error:
        return EnergyInfo(name, record.distribution, error=printable(error))
    try:
        members = members_of(name) if _is_family(obj) else ()
    except ComposableEnergyError as error:
        return EnergyInfo(name, record.distribution, _summary(obj), error=printable(error))
    return EnergyInfo(name, record.distribution, _summary(obj), _comes_trained(obj), _required(obj), members)


def _is_a(obj: Any, cls: type) -> bool:
    return isinstance(obj, type) and issubclass(obj, cls)


def _comes_trained(obj: Any) -> bool | None:
    """Returns what the class says, or the class that a function says it returns."""
    if not isinstance(obj, type):
        try:
            obj = typing.get_type_hints(obj).get("return")
        except Exception:  # annotations of third parties may name anything
            return None
    said = getattr(obj, "comes_trained", None) if _is_a(obj, Energy) or _is_family(obj) else None
    return said if isinstance(said, bool) else None


def _required(obj: Any) -> tuple[str, ...]:
    """Returns the names of the arguments that a class or function has no default for."""
    try:
        parameters = inspect.signature(obj).parameters.values()
    except (TypeError, ValueError):
        return ()
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(one.name for one in parameters if one.default is one.empty and one.kind not in free)


def _summary(obj: Any) -> str:
    """Returns the first line of a docstring up to its first formula, colon or semicolon; a class does not inherit it."""
    own = vars(obj).get("__doc__") if isinstance(obj, type) else getattr(obj, "__doc__", None)
    line = inspect.cleandoc(own).split("\n")[0] if isinstance(own, str) else ""
    return re.split(r"[$;]|: ", line)[0].strip().rstrip(" .,:(")
