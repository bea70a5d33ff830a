"""Records of plug-ins, one for each entry point."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

State = Literal["not-loaded", "ok", "failed", "shadowed", "conflict"]

FIRST_PARTY = "composable-energy"
API_VERSION = 1
"""Number of the contract. A breaking change gets a new number. The class attribute `api_version` of a plug-in is the number
that it was written for, 1 by default; the current number and the previous one are accepted."""


@dataclass(frozen=True)
class Entry:
    """An entry point as its distribution declares it.

    Args:
        group: Such as `composable_energy.energies`.
        name: The name for `get`.
        value: `module:object`.
        distribution: The canonical name of the distribution; None for an object that `register` took.
        version: Its version; None if its metadata has none.
        extra: The extra of the distribution that installs the module, as in `module:object [extra]`; empty if it needs none.
    """

    group: str
    name: str
    value: str
    distribution: str | None = None
    version: str | None = None
    extra: str = ""

    @property
    def qualified(self) -> str:
        """The form that always resolves: `distribution:name`."""
        return f"{self.distribution}:{self.name}" if self.distribution else self.name

    @property
    def awaits_extra(self) -> bool:
        """Whether the extra that installs the module is missing."""
        try:
            return bool(self.extra) and find_spec(re.split("[.:]", self.value)[0]) is None
        except (ImportError, ValueError):  # no name of a module; importing it tells why
            return False

    def __str__(self) -> str:
        owner = f"{self.distribution} {self.version or '(unknown version)'}" if self.distribution else "this session"
        return f"{self.name!r} ({self.value}, from {owner})"


@dataclass(frozen=True)
class Fault:
    """A distribution with entry points that cannot be read."""

    distribution: str
    version: str | None
    error: str


@dataclass(frozen=True)
class PluginRecord:
    """One row of `plugins()`.

    Attributes:
        group: Its entry-point group; empty for a distribution whose metadata cannot be read.
        name: The name for `get`.
        value: `module:object`.
        distribution: The distribution that offers it; None for an object that `register` took.
        version: The distribution's version.
        state: `not-loaded`; `ok`: loaded, keeps the contract; `failed`; `shadowed`: hidden by `register` or the same as an entry of
            another distribution; `conflict`: another distribution offers something else under the name.
        error: Why it failed, or what hides it.
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
    """Returns the normalised name of a distribution: `My_Package` and `my.package` become `my-package`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
