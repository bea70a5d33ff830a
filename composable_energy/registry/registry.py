"""The registry: finds entry points by kind and name, and loads their objects.

Entry points are scanned at the first use, modules are imported when a name is requested, and `plugins()` reports the plug-ins that fail.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from composable_energy.errors import ExtraNotInstalled, OptionError, PluginConflictError, PluginLoadError, PluginNotFound
from composable_energy.notes import add_note
from composable_energy.printable import describe_error
from composable_energy.registry.contract import check_entry, plugin_error
from composable_energy.registry.discovery import scan
from composable_energy.registry.kinds import KINDS, Kind, group_of, import_object
from composable_energy.registry.records import FIRST_PARTY, Entry, Fault, PluginRecord, State, canonical
from composable_energy.suggestions import listed, nearest

SWITCH = "COMPOSABLE_ENERGY_PLUGINS"


@dataclass
class _Group:
    """The entries of one group, and those that the environment variable excludes or whose extra is not installed."""

    entries: list[Entry]
    left_out: list[Entry]


@dataclass
class Registry:
    """Entry points by kind and name, and the objects that were loaded from them.

    The environment variable `COMPOSABLE_ENERGY_PLUGINS` selects distributions; it is read at the first use and after `refresh()`. Unset:
    all. A comma-separated list: these and composable-energy itself. Empty: composable-energy alone.

    Attributes:
        registered: The objects of `register`, by kind and name.
        families: The instances of families of energies, by entry and options; `composable_energy.catalog` fills it.
    """

    registered: dict[tuple[str, str], Any] = field(default_factory=dict)
    _groups: dict[str, _Group] = field(default_factory=dict)
    _faults: dict[str, Fault] = field(default_factory=dict)
    _loaded: dict[Entry, Any] = field(default_factory=dict)
    _failed: dict[Entry, PluginLoadError] = field(default_factory=dict)
    families: dict[tuple[Entry, str], Any] = field(default_factory=dict)
    _warned: bool = False

    def refresh(self) -> None:
        """Forgets what was found, loaded and built, but not what was registered."""
        self.families.clear()
        self._groups, self._faults, self._loaded, self._failed, self._warned = {}, {}, {}, {}, False

    def entry(self, kind: str, name: str) -> Entry:
        """Returns the entry that a name stands for: `name`, or `distribution:name`.

        Raises:
            PluginNotFound: No entry has the name.
            ExtraNotInstalled: An entry has the name, and the extra that installs its module is missing.
            PluginConflictError: Several distributions offer different things under it.
        """
        if not isinstance(name, str):
            raise OptionError(f"The name of the {kind} is a text, got {name!r:.100}.")
        if (kind, name) in self.registered:
            return Entry(group_of(kind), name, _value_of(self.registered[kind, name]))
        distribution, colon, bare = name.rpartition(":")
        group = self._group(kind)
        found = [e for e in group.entries if e.name == bare and (not colon or e.distribution == canonical(distribution))]
        if len({e.value for e in found}) > 1:
            forms = " or ".join(repr(e.qualified) for e in found)
            raise PluginConflictError(f"The {kind} {bare!r} is offered by several distributions; ask for {forms}.")
        if not found:
            raise self._not_found(kind, name, group)
        return found[0]

    def load(self, kind: str, entry: Entry) -> Any:
        """Returns the object of an entry, imported at the first call and checked.

        Raises:
            PluginLoadError: The import fails or the object breaks the contract; later calls raise it without another import.
        """
        if entry.distribution is None:
            return self.registered[kind, entry.name]
        if entry in self._failed:
            known = self._failed[entry]
            raise PluginLoadError(str(known)) from known.__cause__
        if entry not in self._loaded:
            try:
                self._loaded[entry] = self._import(kind, entry)
            except PluginLoadError as error:
                self._failed[entry] = error
                raise
        return self._loaded[entry]

    def _import(self, kind: str, entry: Entry) -> Any:
        rule = self.kind(kind)
        try:
            obj = import_object(entry.value)
        except KeyboardInterrupt as error:  # most probably Ctrl-C; a later call imports it again
            add_note(error, f"{entry} in {entry.group} was being imported; {SWITCH} leaves a plug-in out.")
            raise
        except GeneratorExit:
            raise
        except BaseException as error:  # third-party code may raise anything, and must not stop other plug-ins
            raise plugin_error(entry, f"importing it raised {describe_error(error)}") from error
        try:
            check_entry(rule, entry, obj)
        except (PluginLoadError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # such as a metaclass that raises
            raise plugin_error(entry, f"checking it raised {describe_error(error)}") from error
        return obj

    def own(self, kind: str, name: str) -> str:
        """Returns the form of a name that stands for the library's own plug-in, if there is one, also where others offer the name too."""
        if (kind, name) not in self.registered:
            for entry in self._group(kind).entries:
                if entry.name == name and entry.distribution == FIRST_PARTY:
                    return entry.qualified
        return name

    def distributions(self, kind: str) -> set[str]:
        """Returns the names of the distributions that offer a kind, with those that the environment variable excludes."""
        group = self._group(kind)
        return {entry.distribution for entry in (*group.entries, *group.left_out) if entry.distribution}

    def names(self, kind: str) -> list[str]:
        """Returns the names of a kind, sorted; those in conflict with their distributions."""
        rows = [r for r in self.records([kind]) if r.group and r.state != "shadowed"]
        return sorted(r.qualified if r.state == "conflict" else r.name for r in rows)

    def kind(self, name: str) -> Kind:
        """Returns a kind of plug-in by name.

        Raises:
            OptionError: No package declares it.
            PluginLoadError: The class of the kind fails to load.
        """
        if name in KINDS:
            return KINDS[name]
        known = self.kinds()
        if name not in known:
            raise OptionError(f"Unknown kind of plug-in {name!r}; use one of {', '.join(known)}.{nearest(name, known)}")
        required = self.load("kind", self.entry("kind", name))
        return Kind("builder", (required,))

    def kinds(self) -> tuple[str, ...]:
        """Returns the names of all kinds: the library's own, then those that packages declare."""
        return (*KINDS, *(name for name in self.names("kind") if name not in KINDS))

    def records(self, kinds: Iterable[str] | None = None, *, load: bool = False, of: str | None = None) -> list[PluginRecord]:
        """Returns one record for each entry, and one for each distribution whose metadata cannot be read.

        Args:
            kinds: The kinds; None for all.
            load: Whether to import each.
            of: The distribution of those that are imported; None imports all.
        """
        rows = [record for kind in (self.kinds() if kinds is None else kinds) for record in self._rows(kind, load, of)]
        return rows + [PluginRecord("", "", "", f.distribution, f.version, "failed", f.error) for f in self._faults.values()]

    def _rows(self, kind: str, load: bool, of: str | None) -> Iterator[PluginRecord]:
        for (known, name), obj in self.registered.items():
            if known == kind:
                yield PluginRecord(group_of(kind), name, _value_of(obj), None, None, "ok")
        entries = self._group(kind).entries
        for i, entry in enumerate(entries):
            if load and entry not in self._failed and of in (None, entry.distribution):
                with contextlib.suppress(PluginLoadError):
                    self.load(kind, entry)
            others = [e for e in entries if e.name == entry.name and e.value != entry.value]
            twin = next((e for e in entries[:i] if (e.name, e.value) == (entry.name, entry.value)), None)
            state: State
            if entry in self._failed:
                state, error = "failed", str(self._failed[entry])
            elif (kind, entry.name) in self.registered:
                state, error = "shadowed", f"{entry.name!r} is registered in this session; ask for {entry.qualified!r}"
            elif twin is not None:
                state, error = "shadowed", f"the same as {twin.qualified!r}"
            elif others:
                state, error = "conflict", f"also offered by {', '.join(str(e.distribution) for e in others)}; ask for {entry.qualified!r}"
            else:
                state, error = ("ok" if entry in self._loaded else "not-loaded"), None
            yield PluginRecord(entry.group, entry.name, entry.value, entry.distribution, entry.version, state, error)

    def _group(self, kind: str) -> _Group:
        if kind not in self._groups:
            entries, faults, cause = scan(group_of(kind))
            self._faults.update({fault.distribution: fault for fault in faults})
            if cause is not None and not self._warned:
                self._warned = True
                warnings.warn(
                    f"Some entry points cannot be read ({type(cause).__name__}: {cause}), so each distribution is read on its own; "
                    "composable_energy.plugins() names the bad one.",
                    RuntimeWarning,
                    stacklevel=4,
                )
            switch = os.environ.get(SWITCH)
            allowed = None if switch is None else {FIRST_PARTY, *(canonical(part.strip()) for part in switch.split(","))}
            kept = [e for e in entries if (allowed is None or e.distribution in allowed) and not e.awaits_extra]
            self._groups[kind] = _Group(kept, [e for e in entries if e not in kept])
        return self._groups[kind]

    def _not_found(self, kind: str, name: str, group: _Group) -> PluginNotFound | ExtraNotInstalled:
        bare = name.rpartition(":")[2]
        left_out = [e for e in group.left_out if e.name == bare]
        if left_out and left_out[0].awaits_extra:
            needed = f"{left_out[0].distribution}[{left_out[0].extra}]"
            return ExtraNotInstalled(f"The {kind} {name!r} comes with an extra that is not installed: pip install '{needed}'.")
        if left_out:
            return PluginNotFound(f"The {kind} {name!r} is offered by {left_out[0].distribution}, which {SWITCH} leaves out.")
        known = self.names(kind)
        return PluginNotFound(f"No plug-in offers the {kind} {name!r}.{nearest(name, known) or listed(known)}")


def _value_of(obj: Any) -> str:
    return f"{getattr(obj, '__module__', '?')}:{getattr(obj, '__qualname__', type(obj).__qualname__)}"
