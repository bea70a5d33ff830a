"""The energies that are installed: one line each, and whether they are trained."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from composable_energy.catalog import EnergyFamily, members_of
from composable_energy.energy import Energy
from composable_energy.errors import ComposableEnergyError, PluginNotFound
from composable_energy.options import listed, nearest, printable, text_table
from composable_energy.registry import PluginRecord, get_factory, plugins

_GROUP = "composable_energy.energies"


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


class EnergyTable(Sequence[EnergyInfo]):
    """The installed energies, those of this session first, then by name; prints as a table. Its items are found by number or by name."""

    def __init__(self, rows: Iterable[EnergyInfo]) -> None:
        self._rows = tuple(rows)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self._rows[key]
        found = next((row for row in self._rows if row.name == key), None)
        if found is None:
            known = [row.name for row in self._rows]
            raise PluginNotFound(f"No plug-in offers the energy {key!r}.{nearest(key, known) or listed(known)}")
        return found

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[EnergyInfo]:
        return iter(self._rows)

    def __str__(self) -> str:
        if not self._rows:
            return "No energies are installed; `composable_energy.plugins()` shows what was found."
        return text_table(("energy", "state", "what it is"), [(row.name, row.state, row.line) for row in self._rows])

    __repr__ = __str__


def energies() -> EnergyTable:
    """Returns the installed energies with one line each, and whether they are trained.

    It imports the packages that offer them, and neither builds energies nor reads weights.

    Example:
        >>> import composable_energy as ce
        >>> ce.energies()["faces"].state
        'trained'
        >>> ce.energies()["igebm-mnist"].state
        'untrained'
    """
    return describe_energies(plugins())


def describe_energies(records: Iterable[PluginRecord]) -> EnergyTable:
    """Returns what is known of the energies among the records of `plugins`; one that does not load has an `error`."""
    rows = (record for record in records if record.group == _GROUP and record.state != "shadowed")
    return EnergyTable(_describe(record) for record in rows)


def _describe(record: PluginRecord) -> EnergyInfo:
    name = record.qualified if record.state == "conflict" else record.name
    try:
        obj = get_factory("energy", name)
    except ComposableEnergyError as error:
        return EnergyInfo(name, record.distribution, error=printable(error))
    try:
        members = members_of(name) if _is_a(obj, EnergyFamily) else ()
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
    said = getattr(obj, "comes_trained", None) if _is_a(obj, Energy) or _is_a(obj, EnergyFamily) else None
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
