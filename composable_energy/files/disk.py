"""Paths that users give, locks, files that are read within bounds and written atomically, and how much memory there is."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from composable_energy.errors import FileFormatError, OptionError, StorageError

if TYPE_CHECKING:
    import torch

exists, is_file, is_directory = os.path.exists, os.path.isfile, os.path.isdir  # those of `Path` raise OSError for a name that is too long
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container


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


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock of a file, `.NAME.lock` beside it; the operating system releases it when its owner ends, also after a kill.

    Raises:
        StorageError: Another process, or another call in this one, holds the lock.
        StorageError: The lock cannot be created.
    """
    path = _real_path(path)
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise StorageError(f"{path} is in use by another call or process: wait until that ends, or give another path.") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be locked ({error.strerror or error}): give a path in a folder that can be written.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # first, so that nobody else's is removed; a process that opened it before will notice
            place.unlink(missing_ok=True)
        lock.release()


def read_bytes(path: Path, largest: int | None = None) -> bytes:
    """Returns the content of a regular file of at most `largest` bytes. A pipe or a device, which may never end, is refused.

    Raises:
        FileFormatError: The file cannot be read, is too large or no regular file.
    """
    reason: object
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                reason = "it is no regular file"
            elif largest is not None and status.st_size > largest:
                reason = f"it has {status.st_size} bytes, and {largest} at most are read"
            else:
                return file.read()
    except (OSError, MemoryError, ValueError) as error:  # the last for a path with a null character
        reason = getattr(error, "strerror", None) or error or "out of memory"
    raise FileFormatError(f"{path} cannot be read: {reason}.")


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file atomically: after a crash it has its old or its new content.

    The content is synced to a temporary file, which is then renamed. A symbolic link stays, and its target is replaced; permissions stay.
    Temporary files of the same path, whose processes were killed, are removed.

    Raises:
        StorageError: The file cannot be written; its old content is intact.
    """
    target = _real_path(path)
    fresh = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        with fresh.open("xb") as file:
            with contextlib.suppress(FileNotFoundError):
                fresh.chmod(stat.S_IMODE(target.stat().st_mode) & 0o777)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
        if os.name == "posix":  # the name is on the disk, too
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        failure = StorageError(f"{path} cannot be written ({error.strerror or error}): free some space, or give another place.")
        failure.errno = error.errno
        raise failure from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def _real_path(path: Path) -> Path:
    """Returns the absolute path of a file or folder, without links."""
    try:
        return Path(os.path.realpath(path))
    except FileNotFoundError as error:
        raise StorageError(
            f"{path} leads nowhere, since the working directory was deleted: change to another, or give an absolute path."
        ) from error


def _remove_leftovers(path: Path) -> None:
    known = re.compile(rf"\.{re.escape(path.name)}\.(\d+)-[0-9a-f]{{8}}\.new")
    with contextlib.suppress(OSError):
        for entry in path.parent.iterdir():
            if (match := known.fullmatch(entry.name)) and not _runs(int(match[1])):
                entry.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Returns whether there is a process with an id; True where that is unknown."""
    try:
        return os.name != "posix" or os.kill(pid, 0) is None
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True


def memory_of(device: torch.device) -> int | None:
    """Returns the memory of a device in bytes, used or free; of the CPU that of the container, if it has less. None if it is unknown."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu":
        return None
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no such number here
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or no limit
            found.append(int(path.read_text()))
    return min(found, default=None)
