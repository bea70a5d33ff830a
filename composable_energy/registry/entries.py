"""Entry points: what installed packages declare. The one file that reads their metadata, by `entrypoints` or the standard library.

`entrypoints` stops at the first malformed file, even one of an unrelated package, and drops entries that it cannot parse. In these cases
the standard library reads the distributions one by one, so that a bad file hides only its own entries.
"""

from __future__ import annotations

import configparser
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal

FIRST_PARTY = "composable-energy"
"""The distribution of the library's own plug-ins."""


@dataclass(frozen=True)
class PluginRecord:
    """An entry point as its distribution declares it, and whether it works: one row of `plugins()`.

    Attributes:
        group: Its entry-point group; empty for a distribution whose metadata cannot be read.
        name: The name for `get`: `distribution:name` where the name alone stands for another object, or for none.
        value: `module:object`.
        distribution: The canonical name of the distribution that offers it; None for an object that `register` took.
        version: The distribution's version.
        state: Whether it was loaded and keeps the contract.
        error: Why it failed.
        extra: The extra of the distribution that installs the module, as in `module:object [extra]`; empty if it needs none.
    """

    group: str
    name: str
    value: str
    distribution: str | None = None
    version: str | None = None
    state: Literal["not-loaded", "ok", "failed"] = "not-loaded"
    error: str | None = None
    extra: str = ""

    @property
    def qualified(self) -> str:
        """The form that always resolves: `distribution:name`."""
        return self.name if self.distribution is None or ":" in self.name else f"{self.distribution}:{self.name}"

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


def canonical(distribution: str) -> str:
    """Returns the normalised name of a distribution: `My_Package` and `my.package` become `my-package`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def scan(group: str) -> list[PluginRecord]:
    """Returns what the distributions on `sys.path` declare in a group, by name and distribution, and those that cannot be read."""
    try:
        import entrypoints

        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it drops what it cannot parse with no more than a warning
            points: Any = entrypoints.get_group_all(group)
        found = [
            PluginRecord(
                group,
                point.name,
                f"{point.module_name}:{point.object_name}".rstrip(":"),
                canonical(point.distro.name),
                point.distro.version,
                extra=",".join(point.extras or ()),
            )
            for point in points
        ]
    except Exception:
        found = [record for record in _read_all(tuple(sys.path)) if record.group in (group, "")]
    return sorted(dict.fromkeys(found), key=lambda r: (r.name, r.distribution or "", r.value))


@lru_cache(maxsize=1)
def _read_all(path: tuple[str, ...]) -> tuple[PluginRecord, ...]:
    """Returns the entries of all groups; of two distributions with one name the first on the path counts."""
    owners: dict[str, metadata.Distribution] = {}
    for owner in metadata.distributions(path=list(path)):
        owners.setdefault(canonical(owner.metadata["Name"] or "unknown"), owner)
    return tuple(record for name, owner in owners.items() for record in _read(name, owner))


def _read(name: str, owner: metadata.Distribution) -> Iterator[PluginRecord]:
    try:
        for point in owner.entry_points:
            if point.group.startswith("composable_energy."):
                value, _, extra = point.value.partition("[")
                extra = extra.replace(" ", "").rstrip("]")
                yield PluginRecord(point.group, point.name, value.strip(), name, owner.version, extra=extra)
        text = owner.read_text("entry_points.txt") or ""
        configparser.ConfigParser(delimiters=("=",), interpolation=None).read_string(text)  # the library skips what is malformed
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        yield PluginRecord("", "", "", name, owner.version, "failed", f"its entry_points.txt cannot be read: {reason}")
