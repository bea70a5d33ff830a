"""Energies and encoders by name; each call returns a new object with its origin. And which energies are installed."""

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
from composable_energy.energies.identity import PART, Origin, Part, inherit_token
from composable_energy.errors import ComposableEnergyError, OptionError, PluginNotFound
from composable_energy.options import describe_error, listed, nearest, plain_values, printable, text_table
from composable_energy.registry.entries import FIRST_PARTY, KINDS, PluginRecord, group_of, plugin_error
from composable_energy.registry.registry import build, check_built, check_options, find, get_factory, guarded, load, names, plugins, rows_of

_FAMILIES: dict[tuple[PluginRecord, Any, str], "EnergyFamily"] = {}


class EnergyFamily(ABC):
    """Abstract family of related energies, such as the attributes of one kind of picture.

    An entry point of the group `composable_energy.energies` may be a subclass. The registry builds and keeps one instance for each set of
    options; it holds what its members share, such as base and decoder. `get` returns copies. Copies of one base are the same
    energy while their numbers are equal, so that an expression counts it once. Only `load` reads weights.

    Attributes:
        comes_trained: Whether the members have trained weights; None if there is nothing to train.

    Example:
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


def build_module(kind: str, name: str, options: dict[str, Any], copies: dict[int, Any]) -> Any:
    """Returns a new energy or encoder by name, with its origin, for `get`; objects built with one memo, `copies`, share parts."""
    found, slash, member = name.partition("/") if kind == "energy" and isinstance(name, str) else (name, "", "")
    entry = _entry(found) if kind == "energy" else find(kind, name)
    factory = load(kind, entry)
    origin = Origin(entry.name, member if slash else None, options, entry.distribution, entry.version)
    passed = {inner for value in plain_values(options) if isinstance(value, nn.Module) for inner in value.modules()}
    with inherit_token(origin):
        if _is_family(factory):
            family = _family(entry, factory, options)
            if slash and member not in (members := _members(entry, family)):
                known = [f"{entry.name}/{one}" for one in members]
                missing = f"{entry.name}/{member}"
                raise PluginNotFound(f"No energy {missing!r} in the family {entry.name!r}.{nearest(missing, known) or listed(known)}")
            built = check_built(KINDS[kind], entry, guarded(entry, {}, lambda: family.load(origin.member)))
        elif slash:
            raise PluginNotFound(f"The energy {found!r} has no members, so there is no {name!r}; use {found!r}.")
        else:
            built = build(KINDS[kind], entry, factory, options)
    if type(built) is not factory:  # it may be shared; modules among the options are the caller's
        copies.update((id(module), module) for module in passed)
        try:
            with torch.inference_mode(False):
                built = copy.deepcopy(built, copies)
        except Exception as error:
            raise plugin_error(entry, f"the object that it built cannot be copied ({describe_error(error)})") from error
    built.origin = origin
    for path, module in built.named_modules():
        if module not in passed:  # those are the caller's
            vars(module)[PART] = Part(kind, origin, path)
    return built


def members_of(name: str, /) -> tuple[str, ...]:
    """Returns the names of the members of a family of energies; imports its module.

    Raises:
        PluginNotFound: No plug-in offers the name, or it is not a family.
        PluginConflictError: Several plug-ins offer it.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    if not _is_family(factory := load("energy", entry := _entry(name))):
        raise PluginNotFound(f"The energy {name!r} is not a family and has no members.")
    return _members(entry, _family(entry, factory, {}))


def _entry(name: str) -> PluginRecord:
    """Returns the entry of an energy; an error suggests members of the library's and the session's families where no entry is near."""
    try:
        return find("energy", name)
    except PluginNotFound:
        if nearest(name, names("energy")):
            raise
        known = []
        for row in rows_of("energy"):
            if row.distribution in (None, FIRST_PARTY):
                with contextlib.suppress(ComposableEnergyError):
                    known += [f"{row.name}/{member}" for member in members_of(row.name)]
        if near := nearest(name, known):
            raise PluginNotFound(f"No plug-in offers the energy {name!r}.{near}") from None
        raise


def _is_family(factory: Any) -> bool:
    return isinstance(factory, type) and issubclass(factory, EnergyFamily)


def _family(entry: PluginRecord, factory: Any, options: dict[str, Any]) -> EnergyFamily:
    """Returns the instance for an entry and options; there is one for each, and for each default dtype and device of torch."""
    try:
        text = json.dumps([options, str(torch.get_default_dtype()), str(torch.get_default_device())], sort_keys=True)
    except (TypeError, ValueError) as error:
        raise OptionError(f"Options of the family {entry.name!r} must be plain data, got {options}.") from error
    if (entry, factory, text) not in _FAMILIES:
        check_options(entry, factory, options)
        _FAMILIES.setdefault((entry, factory, text), guarded(entry, options, lambda: factory(**options)))
    return _FAMILIES[entry, factory, text]


def _members(entry: PluginRecord, family: EnergyFamily) -> tuple[str, ...]:
    members = guarded(entry, {}, lambda: tuple(family.members()))
    if not all(isinstance(member, str) for member in members):
        raise plugin_error(entry, "its members are not names")
    return members


@dataclass(frozen=True)
class EnergyInfo:
    """An installed energy, or family of energies.

    Attributes:
        name: The name for `load` and expressions.
        distribution: The package that offers it; None for an energy of this session.
        summary: What it is, in one line.
        trained: Whether it comes with trained weights; None if there is nothing to train, or its package does not say.
        needs: The arguments without a default.
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
        needs = f"needs {', '.join(self.needs)}" if self.needs else ""
        known = {True: "trained", False: "untrained", None: ""}[self.trained]
        return "failed" if self.error is not None else ", ".join(filter(None, [known, needs]))

    @property
    def line(self) -> str:
        """The summary with the number of members, or the error."""
        members = f" ({len(self.members)} members, such as {self.name}/{self.members[0]})" if self.members else ""
        return self.error or self.summary + members


class EnergyTable(tuple[EnergyInfo, ...]):
    """The installed energies, those of this session first, then by name; prints as a table. Its items are found by number or by name."""

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if (row := next((row for row in self if row.name == key), None)) is None:
            known = [row.name for row in self]
            raise PluginNotFound(f"No plug-in offers the energy {key!r}.{nearest(key, known) or listed(known)}")
        return row

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or any(row.name == key for row in self)

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
        >>> ce.installed()["faces"].state
        'trained'
    """
    rows = plugins() if records is None else tuple(records)
    if not all(isinstance(row, PluginRecord) for row in rows):
        raise OptionError(f"`installed` describes energies, given by records of `plugins()`, which has all kinds; got {records!r}.")
    return EnergyTable(_describe(row) for row in rows if row.group == group_of("energy"))


def _describe(row: PluginRecord) -> EnergyInfo:
    name, summary = row.name, ""
    try:
        factory = get_factory("energy", name)
        own = vars(factory).get("__doc__") if isinstance(factory, type) else getattr(factory, "__doc__", None)  # a class inherits none
        line = inspect.cleandoc(own).split("\n")[0] if isinstance(own, str) else ""
        summary = re.split(r"[$;]|: ", line)[0].strip().rstrip(" .,:(")  # up to the first formula
        members = members_of(name) if _is_family(factory) else ()
    except ComposableEnergyError as error:
        return EnergyInfo(name, row.distribution, summary, error=printable(error))
    trained, needs = None, ()
    with contextlib.suppress(Exception):  # annotations of third parties may name anything
        made = factory if isinstance(factory, type) else typing.get_type_hints(factory).get("return")
        trained = made.comes_trained if isinstance(made, type) and issubclass(made, Energy | EnergyFamily) else None
    with contextlib.suppress(TypeError, ValueError):  # it has no signature
        parameters = inspect.signature(factory).parameters.values()
        needs = tuple(one.name for one in parameters if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD))
    return EnergyInfo(name, row.distribution, summary, trained if isinstance(trained, bool) else None, needs, members)
