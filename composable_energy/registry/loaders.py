"""Loaders by scheme: `hf:owner/name` is the location `owner/name` for the loader `hf`, a function that a package offers.

Finding a loader does not import torch, so that the command line reports an unknown scheme at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from composable_energy.errors import OptionError, PluginNotFound
from composable_energy.registry.api import REGISTRY
from composable_energy.registry.build import check_options
from composable_energy.registry.contract import check_built
from composable_energy.registry.kinds import KINDS
from composable_energy.registry.records import Entry
from composable_energy.suggestions import listed, nearest

if TYPE_CHECKING:
    from composable_energy.energy import Energy

__all__ = ["Located", "find_loader"]

_SCHEME = re.compile(r"[A-Za-z0-9_-]{2,}")  # a single letter is a drive of Windows


@dataclass(frozen=True)
class Located:
    """A location and the loader for it.

    Args:
        entry: The entry point of the loader.
        location: What follows the scheme.
    """

    entry: Entry
    location: str

    def load(self, options: Mapping[str, Any]) -> Energy:
        """Returns the energy; errors of the loader are raised as they are.

        Raises:
            OptionError: The location is empty, or the loader does not take an option.
            PluginLoadError: The loader cannot be imported, or does not return an energy.
        """
        import torch

        if not self.location:
            raise OptionError(f"{self.entry.name}: needs a location, as in {self.entry.name}:LOCATION.")
        function: Callable[..., Any] = partial(REGISTRY.load("loader", self.entry), self.location)
        check_options(self.entry, function, options)
        with torch.inference_mode(False):  # tensors of inference mode cannot be sampled
            return check_built(KINDS["energy"], self.entry, function(**options))


def find_loader(text: str) -> Located | None:
    """Returns the loader of `scheme:location`, or of `distribution:scheme:location`; None if the text has no scheme.

    A name of an energy, `distribution:name`, has no scheme; a single letter before the colon is a drive.

    Raises:
        PluginNotFound: No plug-in offers the scheme.
        PluginConflictError: Several do.
    """
    scheme, colon, location = text.partition(":")
    if not colon or not _SCHEME.fullmatch(scheme) or _is_energy(text.partition("/")[0]):
        return None
    try:
        return Located(REGISTRY.entry("loader", scheme), location)
    except PluginNotFound as error:
        second, colon, rest = location.partition(":")
        if colon and scheme in REGISTRY.distributions("loader"):
            return Located(REGISTRY.entry("loader", f"{scheme}:{second}"), rest)
        if scheme in REGISTRY.distributions("energy"):
            return None
        known = REGISTRY.names("loader")
        raise PluginNotFound(f"{error}{listed(known) if nearest(scheme, known) else ''}") from error


def _is_energy(name: str) -> bool:
    return any(name == row.qualified for row in REGISTRY.records(["energy"]))
