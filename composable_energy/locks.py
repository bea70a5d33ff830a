"""Locks of files and folders, for processes that write them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from composable_energy.errors import InUseError, StorageError
from composable_energy.paths import real_path

_PAUSE = 0.01  # seconds between two attempts
_GRACE = 10.0  # seconds to wait for the children of a killed process, which hold its locks until they notice


@contextlib.contextmanager
def exclusive(path: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock of a path: the file `.NAME.lock` beside it, which contains the process id of the owner.

    The operating system releases the lock when the owner ends, also after a kill. The file is removed on exit; one that a killed process
    left is taken over.

    Args:
        path: The file; its folder is created.
        wait: The number of seconds to wait for another owner.

    Raises:
        InUseError: Another process, or another call in this one, holds the lock.
        StorageError: The lock cannot be created.
    """
    path = real_path(path)
    place = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place, thread_local=False)
        _acquire(lock, path, place, time.monotonic() + wait)
    except InUseError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be locked ({error.strerror or error}): give a path in a folder that can be written.") from error
    try:
        with contextlib.suppress(OSError):  # a full disk: then an error cannot name the owner
            place.write_text(str(os.getpid()))
        yield
    finally:
        with contextlib.suppress(OSError):  # first, so that nobody else's is removed; a process that opened it before will notice
            place.unlink(missing_ok=True)
        lock.release()


def runs(pid: int) -> bool:
    """Returns whether there is a process with an id; True where that is unknown."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _acquire(lock: FileLock, path: Path, place: Path, until: float) -> None:
    while True:
        try:
            lock.acquire(timeout=0)
            return
        except (Timeout, RuntimeError):  # the second if this thread holds it
            owner = _owner(place)
            grace = _GRACE if owner is not None and not runs(owner) else 0.0
            if time.monotonic() >= until + grace:
                name = (
                    "another process" if owner is None else "another call of this process" if owner == os.getpid() else f"process {owner}"
                )
                raise InUseError(f"{path} is in use by {name}: wait until that ends, or give another path.") from None
            time.sleep(_PAUSE)


def _owner(place: Path) -> int | None:
    try:
        return int(place.read_text()[:20])
    except (OSError, ValueError):
        return None
