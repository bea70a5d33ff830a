"""Finding entry points: the one file that uses the `entrypoints` package, with the standard library as fallback.

`entrypoints` stops at the first malformed file, even one of an unrelated package, and drops entries that it cannot parse. In these cases
the standard library reads the distributions one by one, so that a bad file hides only its own entries.
"""

from __future__ import annotations

import configparser
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from composable_energy.registry.records import Entry, Fault, canonical


def scan(group: str) -> tuple[list[Entry], list[Fault], Exception | None]:
    """Returns what all distributions on the path declare in a group.

    Args:
        group: The group's name.

    Returns:
        The entries, sorted by name and distribution; the distributions whose entry points cannot be read; and why `entrypoints` failed,
        if it did.
    """
    try:
        import entrypoints

        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it drops what it cannot parse with no more than a warning
            found = entrypoints.get_group_all(group)
        entries = [_entry(group, point) for point in found]
        faults, cause = [], None
    except Exception as error:
        entries, faults = _scan_each(group)
        cause = error
    entries = sorted(dict.fromkeys(entries), key=lambda e: (e.name, e.distribution or "", e.value))
    return entries, faults, cause


def _entry(group: str, point: Any) -> Entry:
    value = f"{point.module_name}:{point.object_name}" if point.object_name else point.module_name
    return Entry(group, point.name, value, canonical(point.distro.name), point.distro.version, ",".join(point.extras or ()))


def _scan_each(group: str) -> tuple[list[Entry], list[Fault]]:
    entries: list[Entry] = []
    faults: list[Fault] = []
    for distribution, name, version in _distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
            points = distribution.entry_points
        except Exception as error:
            faults.append(Fault(name, version, f"its entry_points.txt cannot be read: {_first_line(error)}"))
            continue
        for point in points:
            if point.group == group:
                value, _, extra = point.value.partition("[")
                entries.append(Entry(group, point.name, value.strip(), name, version, extra.replace(" ", "").rstrip("]")))
        try:
            configparser.ConfigParser(delimiters=("=",), interpolation=None).read_string(text)
        except configparser.Error as error:
            faults.append(Fault(name, version, f"its entry_points.txt is malformed: {_first_line(error)}"))
    return entries, faults


def _distributions() -> Iterator[tuple[metadata.Distribution, str, str | None]]:
    """Yields each distribution with its name and version; of two with one name the first on the path counts."""
    seen = set()
    for distribution in metadata.distributions():
        try:
            name, version = distribution.metadata["Name"], distribution.version
        except Exception:
            name, version = None, None
        if not name:  # the name of the folder has both: my_package-1.0.dist-info
            stem = Path(str(getattr(distribution, "_path", "unknown"))).stem
            name, _, version = stem.partition("-")
        name = canonical(name)
        if name not in seen:
            seen.add(name)
            yield distribution, name, version or None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
