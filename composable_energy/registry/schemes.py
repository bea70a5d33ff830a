"""Locations with a scheme: `hf:owner/name` is the location `owner/name` for the loader or publisher `hf`, a function of a plug-in.

Finding the function does not import torch, so that the command line reports an unknown scheme at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from composable_energy.errors import OptionError, PluginNotFound
from composable_energy.options import listed, nearest
from composable_energy.registry.build import check_options
from composable_energy.registry.contract import KINDS, check_built, plugin_error
from composable_energy.registry.entries import PluginRecord
from composable_energy.registry.registry import distributions, find, load, names, records

if TYPE_CHECKING:
    from composable_energy.energy import Energy

_SCHEME = re.compile(r"[A-Za-z0-9_-]{2,}")  # a single letter is a drive of Windows
_DEFAULT = "default"


@dataclass(frozen=True)
class Located:
    """A location and the function for it; errors of the function are raised as they are.

    Args:
        kind: `loader` or `publisher`.
        entry: The entry point of the function.
        location: What follows the scheme.
    """

    kind: str
    entry: PluginRecord
    location: str

    def load(self, **options: Any) -> Energy:
        """Returns the energy at the location.

        Raises:
            OptionError: The location is empty, or the loader does not take an option.
            PluginLoadError: The loader cannot be imported, or does not return an energy.
        """
        return check_built(KINDS["energy"], self.entry, self._call((), options))

    def push(self, energy: Energy, **options: Any) -> str:
        """Uploads an energy to the location, and returns the location for `load`.

        Raises:
            OptionError: The location is empty, or the publisher does not take an option.
            PluginLoadError: The publisher cannot be imported, or does not return a location.
        """
        place = self._call((energy,), options)
        if not isinstance(place, str):
            raise plugin_error(self.entry, f"it should return a location, but returned an object of type {type(place).__name__}")
        return place

    def _call(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        import torch

        if not self.location:
            raise OptionError(f"{self.entry.name}: needs a location, as in {self.entry.name}:LOCATION.")
        function = partial(load(self.kind, self.entry), *arguments, self.location)
        check_options(self.entry, function, options)
        with torch.inference_mode(False):  # tensors of inference mode cannot be sampled
            return function(**options)


def find_loader(text: str) -> Located | None:
    """Returns the loader of `scheme:location`, or of `distribution:scheme:location`; None if the text has no scheme.

    A name of an energy, `distribution:name`, has no scheme; a single letter before the colon is a drive.

    Raises:
        PluginNotFound: No plug-in offers the scheme.
        PluginConflictError: Several do.
    """
    distribution, colon, _ = text.partition(":")
    if not colon:
        return None
    name = text.partition("/")[0]
    if any(name == row.qualified for row in records("energy")):
        return None
    if distribution in distributions("energy") - distributions("loader") and not _offers("loader", distribution):
        return None
    return _find("loader", text)


def find_publisher(text: str) -> Located:
    """Returns the publisher of `scheme:location`; the publisher `default` of a location without a scheme.

    Raises:
        PluginNotFound: No plug-in offers the scheme.
        PluginConflictError: Several do.
    """
    return _find("publisher", text) or Located("publisher", find("publisher", _DEFAULT), text)


def _find(kind: str, text: str) -> Located | None:
    scheme, colon, location = text.partition(":")
    if not colon or not _SCHEME.fullmatch(scheme):
        return None
    if scheme in distributions(kind) and not _offers(kind, scheme) and ":" in location:
        second, _, location = location.partition(":")
        scheme = f"{scheme}:{second}"
    try:
        return Located(kind, find(kind, scheme), location)
    except PluginNotFound as error:
        known = names(kind)
        raise PluginNotFound(f"{error}{listed(known) if nearest(scheme, known) else ''}") from error


def _offers(kind: str, name: str) -> bool:
    return any(name == row.name for row in records(kind))
