"""Records of plug-ins, one for each entry point."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["API_VERSION", "FIRST_PARTY", "Entry", "Fault", "PluginRecord", "State", "canonical"]

State = Literal["not-loaded", "ok", "failed", "shadowed", "conflict"]

FIRST_PARTY = "composable-energy"
API_VERSION = 1
"""Number of the contract. A breaking change gets a new number; a plug-in says by a class attribute `api_version` for which it was written
(1 if it does not), and that number and the one before are accepted."""


@dataclass(frozen=True)
class Entry:
    """An entry point as its distribution declares it.

    Args:
        group: Such as `composable_energy.energies`.
        name: The name that people ask for.
        value: `module:object`.
        distribution: The canonical name of the distribution; None for an object that `register` took.
        version: Its version, if its metadata says.
    """

    group: str
    name: str
    value: str
    distribution: str | None = None
    version: str | None = None

    @property
    def qualified(self) -> str:
        """The form that always resolves: `distribution:name`."""
        return f"{self.distribution}:{self.name}" if self.distribution else self.name

    def __str__(self) -> str:
        owner = f"{self.distribution} {self.version or '(unknown version)'}" if self.distribution else "this session"
        return f"{self.name!r} ({self.value}, from {owner})"


@dataclass(frozen=True)
class Fault:
    """A distribution whose entry points cannot be read as they should be."""

    distribution: str
    version: str | None
    error: str


@dataclass(frozen=True)
class PluginRecord:
    """One row of `plugins()`.

    Attributes:
        group: Its entry-point group; empty for a distribution whose metadata cannot be read.
        name: The name that people ask for.
        value: `module:object`.
        distribution: Who offers it; None for an object that `register` took.
        version: The distribution's version.
        state: `not-loaded`; `ok`: loaded, keeps the contract; `failed`; `shadowed`: hidden by `register` or the same as an entry of
            another distribution; `conflict`: another distribution offers something else under the name.
        error: Why it failed, or what stands in its way.
    """

    group: str
    name: str
    value: str
    distribution: str | None
    version: str | None
    state: State
    error: str | None = None

    @property
    def qualified(self) -> str:
        """The form that always resolves: `distribution:name`."""
        return f"{self.distribution}:{self.name}" if self.distribution else self.name


def canonical(distribution: str) -> str:
    """Returns the one spelling of a distribution's name: `My_Package` and `my.package` are `my-package`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
