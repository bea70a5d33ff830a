"""The registry: finds plug-ins by kind and name, imports their objects when a name is requested, and lists them.

Entry points are scanned at the first use, and again when a name is unknown or `sys.path` is another. The environment variable
`COMPOSABLE_ENERGY_PLUGINS` selects distributions. Unset: all. A comma-separated list: these and composable-energy itself. Empty:
composable-energy alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from composable_energy.errors import ExtraNotInstalled, OptionError, PluginConflictError, PluginLoadError, PluginNotFound, add_note
from composable_energy.options import describe_error, listed, nearest, nearest_names
from composable_energy.registry.build import (
    KINDS,
    Kind,
    build,
    check_built,
    check_entry,
    check_options,
    group_of,
    import_object,
    plugin_error,
)
from composable_energy.registry.entries import FIRST_PARTY, PluginRecord, canonical, scan

SWITCH = "COMPOSABLE_ENERGY_PLUGINS"
_SCHEME = re.compile(r"[A-Za-z0-9_-]{2,}")  # a single letter is a drive of Windows

registered: dict[tuple[str, str], Any] = {}
"""The objects of `register`, by kind and name."""


def get(kind: str, name: str, /, **options: Any) -> Any:
    """Returns a plug-in by name: `get("energy", "faces/male")`, `get("encoder", "comet", weights="sprites")`, `get("sampler", "hmc")`.

    What it builds belongs to the caller: changes to it affect no other object. Members of one family of energies have equal bases, also
    from separate calls, so that an expression counts the base once.

    Args:
        kind: Such as `energy`, `sampler`, `recipe`.
        name: Of an entry, `objects`; of a member of a family, `faces/male`; with a distribution in front, `acme-worlds:objects`.
        **options: What the entry takes; those of a family are plain data.

    Returns:
        A class for samplers, commands and kinds, a function for estimators, loaders and publishers; for all others what the entry
        makes with the options.

    Raises:
        OptionError: No package declares the kind, or the entry does not take an option.
        PluginNotFound: No plug-in offers the name.
        ExtraNotInstalled: The name comes with an extra that is not installed.
        PluginConflictError: Several do, and the library does not.
        PluginLoadError: The plug-in fails to load or breaks the contract.
    """
    rule = kind_of(kind)
    if rule.get:
        return import_object(rule.get)(name, **options)
    entry = find(kind, name)
    obj = load(kind, entry)
    if rule.entry == "builder":
        return check_built(rule, entry, build(entry, obj, options))
    if options:
        raise OptionError(f"The {kind} {name!r} is a {rule.entry}, which takes no options here; got {', '.join(options)}.")
    return obj


def get_factory(kind: str, name: str, /) -> Any:
    """Returns the class or function behind an entry, without calling it; the arguments and errors are those of `get`."""
    kind_of(kind)
    return load(kind, find(kind, name))


def names(kind: str) -> list[str]:
    """Returns the names of a kind of plug-in, sorted; those in conflict with their distributions. Nothing is imported.

    Raises:
        OptionError: No package declares the kind.
    """
    kind_of(kind)
    return sorted(r.qualified if r.state == "conflict" else r.name for r in records(kind) if r.state != "shadowed")


def plugins(load: bool = False, of: str | None = None) -> list[PluginRecord]:
    """Returns one record for each entry point, by kind and then by name, those of this session first; nothing is imported.

    Args:
        load: Whether to import each and say in its `state` whether it works.
        of: The distribution of those that are imported; None imports all.
    """
    rows = [row for kind in _kinds() for row in records(kind, load, of)]
    unreadable = (entry for entries in _known()[0].values() for entry in entries if not entry.group)
    return rows + list(dict.fromkeys(unreadable))


def register(kind: str, name: str, obj: Any) -> contextlib.ExitStack:
    """Registers an object under a name for this session; it takes precedence over entry points of that name.

    Args:
        kind: Such as `energy`, `sampler`, `recipe`; `kind` declares a kind.
        name: The name, of a-z, 0-9, - and _.
        obj: What an entry point may be; for an energy also `lambda: energy`.

    Returns:
        A context manager that restores the previous state on exit; without `with` the object stays.

    Raises:
        OptionError: The kind is unknown.
        PluginLoadError: The object breaks the contract.
    """
    check_entry(kind_of(kind), PluginRecord(group_of(kind), name, getattr(obj, "__qualname__", repr(obj))), obj)
    before = {key: known for key, known in registered.items() if key == (kind, name)}
    registered[kind, name] = obj
    registration = contextlib.ExitStack()
    registration.callback(registered.update, before)
    registration.callback(registered.pop, (kind, name), None)
    return registration


def kind_of(name: str) -> Kind:
    """Returns a kind of plug-in by name.

    Raises:
        OptionError: No package declares it.
        PluginLoadError: The class of the kind fails to load.
    """
    if name in KINDS:
        return KINDS[name]
    known = _kinds()
    if name not in known:
        raise OptionError(f"Unknown kind of plug-in {name!r}; use one of {', '.join(known)}.{nearest(name, known)}")
    return Kind("builder", (load("kind", find("kind", name)),))


def find(kind: str, name: str) -> PluginRecord:
    """Returns the entry that a name stands for: `name`, or `distribution:name`.

    The library's own entry has its name, also where other packages offer it: installing a package changes no default.

    Raises:
        PluginNotFound: No entry has the name.
        ExtraNotInstalled: An entry has the name, and the extra that installs its module is missing.
        PluginConflictError: Several distributions offer different things under it, and the library does not.
    """
    if not isinstance(name, str):
        raise OptionError(f"The name of the {kind} is a text, got {name!r:.100}.")
    if (kind, name) in registered:
        return _of_session(kind, name)
    declared = _declared(kind, name)
    if not declared:  # it may have been installed since the scan
        _known()[0].clear()
        declared = _declared(kind, name)
    found = [entry for entry in declared if _selected(entry) and not entry.awaits_extra]
    if found:
        winner = found[0] if len(found) == 1 else _winner(found)
        if winner is None:
            forms = " or ".join(repr(entry.qualified) for entry in found)
            raise PluginConflictError(f"The {kind} {name!r} is offered by several distributions; ask for {forms}.")
        return winner
    if declared and _selected(declared[0]):
        needed = f"{declared[0].distribution}[{declared[0].extra}]"
        raise ExtraNotInstalled(f"The {kind} {name!r} comes with an extra that is not installed: pip install '{needed}'.")
    if declared:
        raise PluginNotFound(f"The {kind} {name!r} is offered by {declared[0].distribution}, which {SWITCH} leaves out.")
    known = names(kind)
    raise PluginNotFound(f"No plug-in offers the {kind} {name!r}.{nearest(name, known) or listed(known)}")


def load(kind: str, entry: PluginRecord) -> Any:
    """Returns the object of an entry, imported at the first call and checked.

    Raises:
        PluginLoadError: The import fails or the object breaks the contract; later calls raise it without another import.
    """
    if entry.distribution is None:
        return registered[kind, entry.name]
    loaded = _known()[1]
    if entry not in loaded:
        try:
            loaded[entry] = import_object(entry.value)
            check_entry(kind_of(kind), entry, loaded[entry])
        except PluginLoadError as error:
            loaded[entry] = error
        except KeyboardInterrupt as error:  # most probably Ctrl-C; a later call imports it again
            add_note(error, f"{entry} in {entry.group} was being imported; {SWITCH} leaves a plug-in out.")
            raise
        except GeneratorExit:
            raise
        except BaseException as error:  # third-party code may raise anything, and must not stop other plug-ins
            loaded[entry] = plugin_error(entry, f"importing it raised {describe_error(error)}")
            loaded[entry].__cause__ = error
    found = loaded[entry]
    if isinstance(found, PluginLoadError):
        raise PluginLoadError(str(found)) from found.__cause__
    return found


def records(kind: str, load_all: bool = False, of: str | None = None) -> list[PluginRecord]:
    """Returns the records of a kind, those of this session first; the arguments are those of `plugins`."""
    entries = [e for e in _entries(kind) if e.group and _selected(e) and not e.awaits_extra]
    for entry in entries:
        if load_all and of in (None, entry.distribution):
            with contextlib.suppress(PluginLoadError):
                load(kind, entry)
    session = [replace(_of_session(kind, name), state="ok") for known, name in registered if known == kind]
    return session + [_with_state(kind, entry, [e for e in entries if e.name == entry.name]) for entry in entries]


class Exports:
    """The plug-ins of a kind by the names of their classes or functions: `composable_energy.samplers.HMC(step_size=0.1)`.

    `dir` lists them and imports no plug-in; using one imports its package.

    Args:
        name: Where the exports are, for messages.
        kind: The kind, such as `sampler`.
    """

    def __init__(self, name: str, kind: str) -> None:
        self._name, self._kind = name, kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        kind, offers = self._kind, self._offers()
        found = [row for attribute, row in offers if attribute == name]
        if not found:
            words = {word: attribute for attribute, row in offers for word in (attribute, row.name)}
            close = dict.fromkeys(words[word] for word in nearest_names(name, words))
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else listed(sorted({attribute for attribute, _ in offers}))
            raise AttributeError(f"No plug-in offers the {kind} {name!r} in {self._name}.{hint}")
        winner = found[0] if found[0].distribution is None else _winner(found)
        if winner is None:
            forms = " or ".join(f"composable_energy.get({kind!r}, {row.qualified!r})" for row in found)
            raise AttributeError(f"The {kind} {name!r} is offered by several plug-ins; write {forms}.")
        return load(kind, find(kind, winner.qualified))

    def __dir__(self) -> list[str]:
        return sorted({attribute for attribute, _ in self._offers()})

    def _offers(self) -> list[tuple[str, PluginRecord]]:
        rows = [(row.value.replace(":", ".").rpartition(".")[2], row) for row in records(self._kind) if row.state != "shadowed"]
        return [(attribute, row) for attribute, row in rows if attribute.isidentifier()]


samplers = Exports("composable_energy.samplers", "sampler")
"""The classes of all installed samplers; in `sample` the name of a sampler does as well: `sampler="hmc"`."""
viz = Exports("composable_energy.viz", "plot")
"""Pictures of images, densities, chains and explanations: `composable_energy.viz.grid(images)`."""


class PluginFunction:
    """A function of a plug-in, whose package is imported at the first call."""

    def __init__(self, kind: str, name: str) -> None:
        self._entry = (kind, name)

    @property
    def __wrapped__(self) -> Any:
        return get_factory(*self._entry)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.__wrapped__(*args, **options)


calibrate = PluginFunction("estimator", "calibrate")
"""Returns an expression whose levels and mixtures are calibrated; see `composable_energy_mcmc.calibrate_mixtures`."""
classifier = PluginFunction("estimator", "classifier")
"""Returns a classifier by energies; see `composable_energy_classification.Classifier`."""
log_z = PluginFunction("estimator", "log-z")
r"""Estimates $\log Z = \log \int e^{-E(x)}\, dx$; see `composable_energy_mcmc.estimate_log_z`."""
observed = PluginFunction("energy", "observed")
"""Returns the evidence for a measurement; see `composable_energy_observed.ObservedEnergy`."""
over_time = PluginFunction("energy", "over-time")
"""Returns an energy of trajectories; see `composable_energy_planning.OverTime`."""
reward = PluginFunction("energy", "reward")
"""Returns the energy of a reward; see `composable_energy_observed.RewardEnergy`."""


@dataclass(frozen=True)
class Located:
    """A location, such as `owner/name` of `hf:owner/name`, and the loader or publisher of its scheme.

    Args:
        kind: `loader` or `publisher`.
        entry: The entry point of the function.
        location: What follows the scheme.
    """

    kind: str
    entry: PluginRecord
    location: str

    def __call__(self, *energies: Any, **options: Any) -> Any:
        """Returns the energy that a loader finds, or the location where a publisher put an energy; their own errors are raised as they are.

        Raises:
            OptionError: The location is empty, or the function does not take an option.
            PluginLoadError: The function cannot be imported, or returns something else.
        """
        import torch

        if not self.location:
            raise OptionError(f"{self.entry.name}: needs a location, as in {self.entry.name}:LOCATION.")
        function = partial(load(self.kind, self.entry), *energies, self.location)
        check_options(self.entry, function, options)
        with torch.inference_mode(False):  # tensors of inference mode cannot be sampled
            found = function(**options)
        if self.kind == "loader":
            return check_built(KINDS["energy"], self.entry, found)
        if not isinstance(found, str):
            raise plugin_error(self.entry, f"it should return a location, but returned an object of type {type(found).__name__}")
        return found


def locate(kind: str, text: str) -> Located | None:
    """Returns the loader or publisher of `scheme:location`, or of `distribution:scheme:location`; None if the text has no scheme.

    The name of an energy, `distribution:name`, has no scheme; a single letter before the colon is a drive of Windows.

    Raises:
        PluginNotFound: No plug-in offers the scheme.
        PluginConflictError: Several do.
    """
    scheme, colon, location = text.partition(":")
    offered = any(scheme == row.name for row in records(kind))
    if not colon or not _SCHEME.fullmatch(scheme) or (kind == "loader" and _is_energy(text, scheme, offered)):
        return None
    if not offered and scheme in _distributions(kind) and ":" in location:
        second, _, location = location.partition(":")
        scheme = f"{scheme}:{second}"
    try:
        return Located(kind, find(kind, scheme), location)
    except PluginNotFound as error:
        known = names(kind)
        raise PluginNotFound(f"{error}{listed(known) if nearest(scheme, known) else ''}") from error


def _is_energy(text: str, scheme: str, offered: bool) -> bool:
    """Returns whether `distribution:name` is an energy, also one that is not installed, and not the location of a scheme."""
    named = any(text.partition("/")[0] == row.qualified for row in records("energy"))
    return named or (not offered and scheme in _distributions("energy") - _distributions("loader"))


def _distributions(kind: str) -> set[str]:
    """Returns the names of the distributions that offer a kind, with those that the environment variable leaves out."""
    return {entry.distribution for entry in _entries(kind) if entry.group and entry.distribution}


@lru_cache(maxsize=1)
def _found_on(path: tuple[str, ...]) -> tuple[dict[str, list[PluginRecord]], dict[PluginRecord, Any]]:
    return {}, {}


def _known() -> tuple[dict[str, list[PluginRecord]], dict[PluginRecord, Any]]:
    """Returns the entries by kind, and the objects or errors of those that were loaded; both are empty when `sys.path` has changed."""
    return _found_on(tuple(sys.path))


def _entries(kind: str) -> list[PluginRecord]:
    entries = _known()[0]
    if kind not in entries:
        entries[kind] = scan(group_of(kind))
    return entries[kind]


def _declared(kind: str, name: str) -> list[PluginRecord]:
    distribution, colon, bare = name.rpartition(":")
    return [e for e in _entries(kind) if e.group and e.name == bare and (not colon or e.distribution == canonical(distribution))]


def _kinds() -> tuple[str, ...]:
    """Returns the names of all kinds: the library's own, then those that packages declare."""
    return (*KINDS, *(name for name in names("kind") if name not in KINDS))


def _selected(entry: PluginRecord) -> bool:
    """Returns whether the environment variable leaves an entry in."""
    switch = os.environ.get(SWITCH)
    return switch is None or entry.distribution in (FIRST_PARTY, *(canonical(part.strip()) for part in switch.split(",")))


def _winner(entries: Sequence[PluginRecord]) -> PluginRecord | None:
    """Returns which of the entries of one name the name stands for; None if other packages than the library offer different things."""
    own = [entry for entry in entries if entry.distribution == FIRST_PARTY]
    return (own or entries)[0] if own or len({entry.value for entry in entries}) == 1 else None


def _with_state(kind: str, entry: PluginRecord, same_name: list[PluginRecord]) -> PluginRecord:
    loaded, winner, ask = _known()[1].get(entry), _winner(same_name), f"ask for {entry.qualified!r}"
    if isinstance(loaded, PluginLoadError):
        return replace(entry, state="failed", error=str(loaded))
    if (kind, entry.name) in registered:
        return replace(entry, state="shadowed", error=f"{entry.name!r} is registered in this session; {ask}")
    if winner is None:
        others = ", ".join(str(e.distribution) for e in same_name if e.value != entry.value)
        return replace(entry, state="conflict", error=f"also offered by {others}; {ask}")
    if winner is not entry:
        return replace(entry, state="shadowed", error=f"{entry.name!r} is {winner.qualified!r}; {ask}")
    return entry if loaded is None else replace(entry, state="ok")


def _of_session(kind: str, name: str) -> PluginRecord:
    obj = registered[kind, name]
    value = f"{getattr(obj, '__module__', '?')}:{getattr(obj, '__qualname__', type(obj).__qualname__)}"
    return PluginRecord(group_of(kind), name, value)
