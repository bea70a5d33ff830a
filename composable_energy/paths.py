"""What is at a path that a user gives; a path that the system cannot look up, such as one with a name that is too long, leads nowhere.

`Path.is_file` raises `OSError` for these up to Python 3.13.
"""

from __future__ import annotations

import os
from pathlib import Path

from composable_energy.errors import OptionError, StorageError


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path with the home of `~` and `~user`.

    Raises:
        OptionError: It is no path of this system, such as a text with a null character, or the user is unknown.
    """
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("it has a null character")
        return Path(path).expanduser()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{str(path)!r:.200} is no path: {str(error).rstrip('.')}.") from error


def exists(path: Path) -> bool:
    """Returns whether there is something at a path."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """Returns whether there is a regular file at a path."""
    return os.path.isfile(path)  # noqa: PTH113


def is_directory(path: Path) -> bool:
    """Returns whether there is a folder at a path."""
    return os.path.isdir(path)  # noqa: PTH112


def real_path(path: Path) -> Path:
    """Returns the absolute path of a file or folder, without links.

    Raises:
        StorageError: The path is relative to a working directory that was deleted.
    """
    try:
        return Path(os.path.realpath(path))
    except FileNotFoundError as error:
        raise StorageError(
            f"{path} leads nowhere, since the working directory was deleted: change to another, or give an absolute path."
        ) from error
