"""The functions `save`, `load` and `push`, and locations with a scheme."""

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import Copies
from composable_energy.errors import ComposableEnergyError, ExpressionError, FileFormatError, OptionError, PluginNotFound
from composable_energy.files.nodes import read_expression, write_expression
from composable_energy.files.record import ENERGY_FILE, expanded, is_directory, is_saved, read_record, write_record
from composable_energy.options import describe_error, listed, nearest
from composable_energy.registry import PluginRecord, get, names
from composable_energy.registry.entries import KINDS, plugin_error
from composable_energy.registry.registry import check_built, check_options, find, owners_of, rows_of
from composable_energy.registry.registry import load as load_entry

VERSION = 4
"""The version of its header."""
_SCHEME = re.compile(r"[A-Za-z0-9_-]{2,}")  # a single letter is a drive of Windows


def save(energy: Energy, folder: str | Path) -> None:
    """Writes an expression and its tensors to the file `energy.safetensors` of a folder, atomically.

    Objects of plug-ins are written as name, options and tensors; nodes, distributions and events as their `config()`.

    Args:
        energy: The expression.
        folder: The folder; it is created. A saved energy in it is replaced, other files stay.

    Raises:
        ExpressionError: A term cannot be saved, such as a bare function; nothing is written.
        OptionError: The folder has no energy of its own, but folders with energies, as a run has.
        StorageError: The file cannot be written; what the folder held is intact.

    Example:
        >>> import tempfile
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (bowl & 2 * bowl).save(folder)
        ...     print(ce.load(folder))
        Normal & 2 * Normal
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"save takes an energy, got {type(energy).__name__}; lift it with composable_energy.as_energy.")
    path = (place := expanded(folder)) / ENERGY_FILE
    if is_directory(place) and not is_saved(place) and (inside := next(place.glob(f"*/{ENERGY_FILE}"), None)):
        raise OptionError(f"{place} holds energies, such as {inside.parent.name}, which this one would hide: give another folder.")
    try:
        write_record(path, "energy", VERSION, *write_expression(energy))
    except ComposableEnergyError:
        raise
    except RecursionError as error:
        raise ExpressionError("The expression is nested too deeply to be saved.") from error
    except (ValueError, RuntimeError, KeyError) as error:  # it is too large, or a tensor has no values, or a type of no file
        raise ExpressionError(f"It cannot be saved: {describe_error(error)}.") from error


@overload
def load(source: str, /, **options: Any) -> Energy: ...
@overload
def load(source: Path, /, **options: Any) -> Any: ...
def load(source: str | Path, /, **options: Any) -> Any:
    """Returns a saved expression, an energy by name, or what a loader finds at a location.

    A folder with saved energies in its sub-folders, such as that of a run, gives a dict of them by name, which share what is equal. Give it
    as a `Path` where types are checked: a text counts as the name or the folder of one energy.

    Nothing is unpickled; only entry points of installed plug-ins that the expression names are imported.

    Args:
        source: A folder that `save` wrote, its file, or a folder of such, which take precedence; the name of an installed energy, such as
            `faces/male`; or `scheme:location`, such as `hf:owner/name`, for the loader of a plug-in. A `Path` is never a name or location.
        **options: Options of `get` for a name, of the loader for a location.

    Raises:
        FileFormatError: The file is missing, corrupt, truncated or has another format.
        PluginNotFound: No plug-in offers a name or scheme; for a saved expression the message names the distribution that wrote it.
        OptionError: The source is no path and no text, a plug-in does not take an option, or there are options for a folder.

    Example:
        >>> print(ce.load("plane/ring") & ~ce.load("plane/right"))
        ring & ~right
    """
    if not isinstance(source, str | Path):
        raise OptionError(f"load takes a folder, a name or a location, got {type(source).__name__}: write `ce.load('faces/male')`.")
    folder = path.parent if (path := expanded(source)).name == ENERGY_FILE and is_saved(path.parent) else path
    inside = sorted(file.parent for file in folder.glob(f"*/{ENERGY_FILE}")) if is_directory(folder) and not is_saved(folder) else []
    if inside or is_saved(folder):
        if options:
            raise OptionError(f"{folder} holds a saved energy, which takes no options; got {', '.join(options)}.")
        with torch.inference_mode(False):  # tensors of inference mode cannot be sampled
            if inside:  # with one object for equal modules, such as their base
                found = {part.name: load(part) for part in inside}
                pairs = Copies(nn.ModuleList(found.values())).pairs
                return copy.deepcopy(found, {id(module): first for first, other in pairs for module in (first, other)})
            return read_expression(*read_record(folder / ENERGY_FILE, "energy", VERSION, weights=True), where=str(folder))
    if not isinstance(source, Path) and not is_directory(folder) and (located := locate("loader", source)):
        return located(**options)
    if isinstance(source, Path) or source.startswith((".", "/", "~")) or "\\" in source or source[1:2] == ":":
        raise FileFormatError(f"{folder} holds no saved energy: there is no {ENERGY_FILE}.")
    try:
        return get("energy", source, **options)
    except PluginNotFound as error:
        where = f"no {ENERGY_FILE} in the folder {str(folder)!r}" if is_directory(folder) else f"no folder {str(folder)!r}"
        raise PluginNotFound(f"{error} There is {where} either.") from error


def push(energy: Energy, location: str, /, **options: Any) -> str:
    """Uploads an expression and its tensors to a location that others can load from, and returns the location for `load`.

    Args:
        energy: The expression.
        location: `scheme:location` for the publisher that a plug-in offers under the name of the scheme, such as `hf:owner/name`; a
            location without a scheme is for the publisher `default`, the Hugging Face hub.
        **options: Options of the publisher.

    Raises:
        ExpressionError: A term cannot be saved, such as a bare function; nothing is uploaded.
        PluginNotFound: No plug-in offers the scheme.
        OptionError: The publisher does not take an option.
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"push takes an energy, got {type(energy).__name__}; lift it with composable_energy.as_energy.")
    if not isinstance(location, str):
        raise OptionError(f"push takes a location as text, such as 'hf:owner/name', got {location!r:.100}.")
    located = locate("publisher", location) or partial(_located, "publisher", find("publisher", "default"), location)
    return located(energy, **options)


def locate(kind: str, text: str) -> Callable[..., Any] | None:
    """Returns the call of the loader or publisher of `scheme:location`; None if the text has no scheme.

    The name of an energy, `distribution:name`, has no scheme; a single letter before the colon is a drive of Windows.

    Raises:
        PluginNotFound: No plug-in offers the scheme.
    """
    scheme, colon, location = text.partition(":")
    if not colon or not _SCHEME.fullmatch(scheme):
        return None
    if kind == "loader" and any(text.partition("/")[0] == row.qualified for row in rows_of("energy")):
        return None
    try:
        return partial(_located, kind, find(kind, scheme), location)
    except PluginNotFound as error:
        if kind == "loader" and scheme in owners_of("energy"):
            return None
        raise PluginNotFound(f"{error}{listed(names(kind)) if nearest(scheme, names(kind)) else ''}") from error


def _located(kind: str, entry: PluginRecord, location: str, *energies: Energy, **options: Any) -> Any:
    """Returns the energy that a loader finds, or the location where a publisher put an energy; their own errors are raised as they are."""
    if not location:
        raise OptionError(f"{entry.name}: needs a location, as in {entry.name}:LOCATION.")
    function = partial(load_entry(kind, entry), *energies, location)
    check_options(entry, function, options)
    with torch.inference_mode(False):  # tensors of inference mode cannot be sampled
        found = function(**options)
    if kind == "loader":
        return check_built(KINDS["energy"], entry, found)
    if not isinstance(found, str):
        raise plugin_error(entry, f"it should return a location, but returned an object of type {type(found).__name__}")
    return found
