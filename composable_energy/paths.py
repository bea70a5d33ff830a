"""What is at a path that a user gives; a path that the system cannot look up, such as one with a name that is too long, leads nowhere.

`Path.is_file` raises `OSError` for these up to Python 3.13.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["exists", "is_directory", "is_file"]


def exists(path: Path) -> bool:
    """Returns whether there is something at a path."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """Returns whether there is a regular file at a path."""
    return os.path.isfile(path)  # noqa: PTH113


def is_directory(path: Path) -> bool:
    """Returns whether there is a folder at a path."""
    return os.path.isdir(path)  # noqa: PTH112
