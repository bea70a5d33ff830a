"""Suggestions in error messages: the nearest known names, or all names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["listed", "nearest", "nearest_names"]

_SHOWN = 20


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Returns the names that are nearest to a name, at most `count`."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the sentence " Did you mean ...?" with the nearest names; empty if no name is near."""
    close = nearest_names(name, known)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def listed(known: Iterable[str]) -> str:
    """Returns a sentence that lists the known names."""
    known = list(known)
    shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
    return f" Known: {shown}." if known else " None is installed."
