"""The registry: finds plug-ins by kind and name, imports their objects when a name is requested, and lists them.

Entry points are scanned at the first use, and when a name is unknown or `sys.path` is another. The variable `COMPOSABLE_ENERGY_PLUGINS`
selects distributions. Unset: all. A comma-separated list: these and composable-energy itself. Empty: composable-energy alone.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pkgutil import resolve_name
from types import MethodType
from typing import Any

from composable_energy.errors import (
    ComposableEnergyError,
    ExtraNotInstalled,
    OptionError,
    PluginConflictError,
    PluginLoadError,
    PluginNotFound,
    add_note,
)
from composable_energy.options import check_flag, describe_error, listed, nearest
from composable_energy.registry.entries import FIRST_PARTY, KINDS, Kind, PluginRecord, canonical, check_entry, group_of, plugin_error, scan

SWITCH = "COMPOSABLE_ENERGY_PLUGINS"
_LONGEST = 60  # characters of an option in a message
registered: dict[tuple[str, str], Any] = {}
"""The objects of `register`, by kind and name."""


def get(kind: str, name: str, /, **options: Any) -> Any:
    """Returns a plug-in by name: `get("energy", "faces/male")`, `get("encoder", "comet", weights="sprites")`, `get("sampler", "hmc")`.

    It is a class for samplers, commands and kinds, a function for estimators, loaders and publishers; for all others what the entry makes,
    which belongs to the caller. Members of one family of energies have equal bases, also from separate calls.

    Args:
        kind: Such as `energy`, `sampler`, `recipe`.
        name: Of an entry, `objects`; of a member of a family, `faces/male`; with a distribution in front, `acme-worlds:objects`.
        **options: What the entry takes; those of a family are plain data.

    Raises:
        OptionError: No package declares the kind, or the entry does not take an option.
        PluginNotFound: No plug-in offers the name; `ExtraNotInstalled` if it comes with an extra.
        PluginConflictError: Several do, and the library does not.
        PluginLoadError: The plug-in fails to load or breaks the contract.

    Example:
        >>> ce.get("sampler", "mala")(step_size=0.1)
        MALA(step_size=0.1, acceptance=0.574, tuning_steps=150)
    """
    rule = kind_of(kind)
    if kind in ("energy", "encoder"):
        return resolve_name("composable_energy.registry.catalog:build_module")(kind, name, options, {})
    found = load(kind, entry := find(kind, name))
    if rule.entry == "builder":
        return build(rule, entry, found, options)
    if options:
        raise OptionError(f"The {kind} {name!r} is a {rule.entry}, which takes no options here; got {', '.join(options)}.")
    return found


def get_factory(kind: str, name: str, /) -> Any:
    """Returns the class or function behind an entry, without calling it; the arguments and errors are those of `get`."""
    kind_of(kind)
    return load(kind, find(kind, name))


def names(kind: str) -> list[str]:
    """Returns the names of a kind of plug-in, sorted, as `get` takes them. Nothing is imported.

    Raises:
        OptionError: No package declares the kind.
    """
    kind_of(kind)
    return sorted(row.name for row in rows_of(kind))


def plugins(load: bool = False, of: str | None = None) -> list[PluginRecord]:
    """Returns one record for each entry point, by kind and then by name, those of this session first; nothing is imported.

    Args:
        load: Whether to import each and say in its `state` whether it works.
        of: The distribution of those that are imported; None imports all.
    """
    kinds = [*KINDS, *(name for name in names("kind") if name not in KINDS)]
    for kind in kinds if check_flag("load", load) else ():
        for entry in _usable(kind):
            if of in (None, entry.distribution):
                with contextlib.suppress(PluginLoadError, PluginNotFound):
                    get_factory(kind, entry.qualified)
    rows = [row for kind in kinds for row in rows_of(kind)]
    return rows + list(dict.fromkeys(entry for entries in _known().entries.values() for entry in entries if not entry.group))


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

    Example:
        >>> with ce.register("energy", "bowl", lambda: ce.as_energy(lambda x: x.square().sum(1), name="bowl")):
        ...     print(2 * ce.load("bowl"))
        2 * bowl
    """
    check_entry(kind_of(kind), PluginRecord(group_of(kind), name, getattr(obj, "__qualname__", repr(obj))), obj)
    registration = contextlib.ExitStack()
    registration.callback(registered.update, {key: known for key, known in registered.items() if key == (kind, name)})
    registration.callback(registered.pop, (kind, name), None)
    registered[kind, name] = obj
    return registration


def kind_of(name: str) -> Kind:
    """Returns a kind of plug-in by name, or raises `OptionError` if no package declares it."""
    if name in KINDS:
        return KINDS[name]
    if name not in (known := [*KINDS, *names("kind")]):
        raise OptionError(f"Unknown kind of plug-in {name!r}; use one of {', '.join(known)}.{nearest(name, known)}")
    return Kind("builder", (load("kind", find("kind", name)),))


def find(kind: str, name: str) -> PluginRecord:
    """Returns the entry of `name` or `distribution:name`, or raises an error of `get`; installing other packages changes no own name."""
    if not isinstance(name, str):
        raise OptionError(f"The name of the {kind} is a text, got {name!r:.100}.")
    if (kind, name) in registered:
        obj = registered[kind, name]
        value = f"{getattr(obj, '__module__', '?')}:{getattr(obj, '__qualname__', type(obj).__qualname__)}"
        return PluginRecord(group_of(kind), name, value, state="ok")
    resolved, key = _known().resolved, (kind, name, os.environ.get(SWITCH))
    if key not in resolved:
        resolved[key] = _resolve(kind, name)
    return resolved[key]


def _resolve(kind: str, name: str) -> PluginRecord:
    if not (declared := _declared(kind, name)):  # it may have been installed since the scan
        _known().entries.clear()
        _known().resolved.clear()
        declared = _declared(kind, name)
    if winner := _winner(found := [entry for entry in declared if _is_selected(entry) and not entry.awaits_extra]):
        return winner
    if found:
        forms = " or ".join(repr(entry.qualified) for entry in found)
        raise PluginConflictError(f"The {kind} {name!r} is offered by several distributions; ask for {forms}.")
    if not declared:
        known = names(kind)
        raise PluginNotFound(f"No plug-in offers the {kind} {name!r}.{nearest(name, known) or listed(known)}")
    if not _is_selected(declared[0]):
        raise PluginNotFound(f"The {kind} {name!r} is offered by {declared[0].distribution}, which {SWITCH} leaves out.")
    needed = f"{declared[0].distribution}[{declared[0].extra}]"
    raise ExtraNotInstalled(f"The {kind} {name!r} comes with an extra that is not installed: pip install '{needed}'.")


def load(kind: str, entry: PluginRecord) -> Any:
    """Returns the object of an entry, imported at the first call and checked; a failure is raised again without another import."""
    if entry.distribution is None:
        return registered[kind, entry.name]
    if entry not in (loaded := _known().loaded):
        loaded[entry] = _import(kind, entry)
    if isinstance(loaded[entry], PluginLoadError):
        raise PluginLoadError(str(loaded[entry])) from loaded[entry].__cause__
    return loaded[entry]


def _import(kind: str, entry: PluginRecord) -> Any:
    """Returns the object of an entry, or why it cannot be used."""
    try:
        found = resolve_name(entry.value)
        check_entry(kind_of(kind), entry, found)
        return found
    except PluginLoadError as error:
        return error
    except KeyboardInterrupt as error:  # most probably Ctrl-C; a later call imports it again
        add_note(error, f"{entry} in {entry.group} was being imported; {SWITCH} leaves a plug-in out.")
        raise
    except GeneratorExit:
        raise
    except BaseException as error:  # third-party code may raise anything, and must not stop other plug-ins
        failure = plugin_error(entry, f"importing it raised {describe_error(error)}")
        failure.__cause__ = error
        return failure


def rows_of(kind: str) -> list[PluginRecord]:
    """Returns the records of a kind with their states, those of this session first."""
    rows, entries = [find(kind, name) for known, name in registered if known == kind], _usable(kind)
    for entry in entries:
        loaded, winner = _known().loaded.get(entry), _winner([other for other in entries if other.name == entry.name])
        name = entry.name if winner is entry and (kind, entry.name) not in registered else entry.qualified
        error = str(loaded) if isinstance(loaded, PluginLoadError) else None
        rows.append(replace(entry, name=name, error=error, state="failed" if error else "not-loaded" if loaded is None else "ok"))
    return rows


def owners_of(kind: str) -> set[str]:
    """Returns the names of the distributions that offer a kind, with those that the environment variable leaves out."""
    return {entry.distribution for entry in _entries(kind) if entry.group and entry.distribution}


class _Known:
    """What was found on one `sys.path`: entries by kind, those that names stand for, and objects, or the errors of their imports."""

    def __init__(self, path: tuple[str, ...]) -> None:
        self.entries: dict[str, list[PluginRecord]] = {}
        self.resolved: dict[tuple[str, str, str | None], PluginRecord] = {}
        self.loaded: dict[PluginRecord, Any] = {}


_known_on = lru_cache(maxsize=1)(_Known)


def _known() -> _Known:
    return _known_on(tuple(sys.path))


def _entries(kind: str) -> list[PluginRecord]:
    if kind not in (entries := _known().entries):
        entries[kind] = scan(group_of(kind))
    return entries[kind]


def _declared(kind: str, name: str) -> list[PluginRecord]:
    distribution, colon, bare = name.rpartition(":")
    return [e for e in _entries(kind) if e.group and e.name == bare and (not colon or e.distribution == canonical(distribution))]


def _usable(kind: str) -> list[PluginRecord]:
    return [entry for entry in _entries(kind) if entry.group and _is_selected(entry) and not entry.awaits_extra]


def _is_selected(entry: PluginRecord) -> bool:
    """Returns whether the environment variable leaves an entry in."""
    switch = os.environ.get(SWITCH)
    return switch is None or entry.distribution in (FIRST_PARTY, *(canonical(part.strip()) for part in switch.split(",")))


def _winner(entries: Sequence[PluginRecord]) -> PluginRecord | None:
    """Returns which of the entries of one name the name stands for; None if other packages than the library offer different things."""
    own = [entry for entry in entries if entry.distribution == FIRST_PARTY]
    return (own or entries)[0] if own or len({entry.value for entry in entries}) == 1 else None


def check_options(entry: PluginRecord, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises `OptionError` unless a class or function of a plug-in takes the options."""
    try:
        signature = inspect.signature(builder)
    except Exception:  # it has none, or third-party code computes it
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        accepted = ", ".join(map(str, signature.parameters.values())) or "no options"
        raise OptionError(f"{entry.name!r} takes ({accepted}), got ({', '.join(options)}): {error}.") from error


def guarded(entry: PluginRecord, options: Mapping[str, Any], function: Callable[[], Any]) -> Any:
    """Calls a function of a plug-in; its error becomes a `PluginLoadError`, or with options an `OptionError` or one with a note."""
    import torch

    try:
        with torch.inference_mode(False):  # tensors created in inference mode can never require gradients
            return function()
    except (ComposableEnergyError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # such as SystemExit, which would end the program without a word
        if not options or not isinstance(error, Exception):
            raise plugin_error(entry, f"making it raised {describe_error(error)}") from error
        shown = {name: f"={value!r}" for name, value in options.items()}
        given = ", ".join(name + (text if len(text) <= _LONGEST and "\n" not in text else "") for name, text in shown.items())
        if isinstance(error, TypeError | ValueError):
            raise OptionError(f"Plug-in {entry} does not accept {given}: {describe_error(error)}") from error
        add_note(error, f"This happened while plug-in {entry} was built with {given}.")
        raise


def build(kind: Kind, entry: PluginRecord, builder: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Calls the class or function of an entry with options, and returns the object, an instance of the first class of the kind."""
    check_options(entry, builder, options)
    return check_built(kind, entry, guarded(entry, options, lambda: builder(**options)))


def check_built(kind: Kind, entry: PluginRecord, built: Any) -> Any:
    """Returns what an entry built, or raises `PluginLoadError` if it is no instance of the first class of its kind."""
    if not issubclass(type(built), (required := kind.load_classes()[0])):
        article = "an" if required.__name__[0] in "AEIOU" else "a"
        raise plugin_error(entry, f"it should return {article} {required.__name__}, but returned an object of type {type(built).__name__}")
    return built


class Exports:
    """The plug-ins of a kind by names of classes and functions: `composable_energy.samplers.HMC`; using one imports its package."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = [row for attribute, row in self._offers() if attribute == name]
        if preferred := [row for row in found if row.distribution in (None, FIRST_PARTY)] or found[: len(found) == 1]:
            return get_factory(self._kind, preferred[0].name)
        if found:
            forms = " or ".join(f"composable_energy.get({self._kind!r}, {row.qualified!r})" for row in found)
            raise AttributeError(f"The {self._kind} {name!r} is offered by several plug-ins; write {forms}.")
        raise AttributeError(f"No plug-in offers the {self._kind} {name!r}.{nearest(name, dir(self)) or listed(dir(self))}")

    def __dir__(self) -> list[str]:
        return sorted({attribute for attribute, _ in self._offers()})

    def _offers(self) -> list[tuple[str, PluginRecord]]:
        rows = [(row.value.replace(":", ".").rpartition(".")[2], row) for row in rows_of(self._kind)]
        return [(attribute, row) for attribute, row in rows if attribute.isidentifier()]


samplers = Exports("sampler")
"""The classes of all installed samplers; in `sample` the name of a sampler does as well: `sampler="hmc"`."""
viz = Exports("plot")
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

    def __get__(self, instance: object, owner: type | None = None) -> Any:  # as a method of a class
        return self if instance is None else MethodType(self.__wrapped__, instance)


calibrate = PluginFunction("estimator", "calibrate")
"""Returns an expression whose levels and mixtures are calibrated; see `composable_energy_mcmc.calibrate_mixtures`."""
classifier = PluginFunction("estimator", "classifier")
"""Returns a classifier by energies; see `composable_energy_classification.Classifier`."""
infer = PluginFunction("estimator", "infer")
"""Returns which of several conditions points fulfil: the method `E.infer`; see `composable_energy_classification.infer`."""
log_z = PluginFunction("estimator", "log-z")
r"""Estimates $\log Z = \log \int e^{-E(x)}\, dx$; see `composable_energy_mcmc.estimate_log_z`."""
observed = PluginFunction("energy", "observed")
"""Returns the evidence for a measurement; see `composable_energy_observed.ObservedEnergy`."""
to_arviz = PluginFunction("plot", "arviz")
"""Returns a trace for ArviZ: the method `Trace.to_arviz`; see `composable_energy_viz.to_arviz`."""
reward = PluginFunction("energy", "reward")
"""Returns the energy of a reward; see `composable_energy_observed.RewardEnergy`."""
