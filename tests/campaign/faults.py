"""A layer below the library that counts the system calls that write, and lets one of them fail or end the process. It uses Python's audit
events (open, rename, remove, mkdir) and wraps `os.fsync`. A process that ends here loses what it has not synced, as in a power cut: such
files keep half of their content, and a file that was renamed has its old name if its folder was not synced since. An audit hook cannot be
removed, so each trial runs in a forked child."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 137
POSSIBLE = Path("/proc/self/fd").is_dir()
"""Whether this system has what the layer needs: forks, and the names of open files."""
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}
_WRITES = os.O_WRONLY | os.O_RDWR


class Faults:
    """Lets the system call number `at` that writes below the folder `root` raise an error, such as `errno.ENOSPC`, or end the process."""

    def __init__(self, at: int | None, root: Path, error: int | None = None) -> None:
        self.at, self.root, self.error = at, str(root), error
        self.calls: list[str] = []
        self.unsynced: dict[str, int] = {}  # files that were written, and the size that is safe
        self.renames: list[tuple[Path, Path, bytes | None]] = []  # old and new names, and what the new one was before
        self.running = False

    def install(self) -> None:
        """Installs the layer in this process, for good."""
        sync = os.fsync

        def fsync(descriptor: int) -> None:
            path = str(Path(f"/proc/self/fd/{descriptor}").resolve())
            self.count("fsync", path)
            sync(descriptor)
            self.unsynced.pop(path, None)
            self.renames = [rename for rename in self.renames if str(rename[1].parent) != path]

        os.fsync = fsync
        sys.addaudithook(self.hook)
        self.running = True

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.running or (event != "open" and event not in _EVENTS) or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = str(Path(os.fsdecode(arguments[0])).absolute())
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return
        self.count(event, path)
        if event == "open" and not path.endswith(".lock"):
            kept = 0 if arguments[2] & (os.O_TRUNC | os.O_EXCL) or not Path(path).exists() else Path(path).stat().st_size
            self.unsynced[path] = min(kept, self.unsynced.get(path, kept))
        elif event == "os.rename":
            target = str(Path(os.fsdecode(arguments[1])).absolute())
            self.renames.append((Path(path), Path(target), Path(target).read_bytes() if Path(target).is_file() else None))
            self.unsynced.pop(target, None)
            if path in self.unsynced:
                self.unsynced[target] = self.unsynced.pop(path)

    def count(self, event: str, path: str) -> None:
        if not path.startswith(self.root):
            return
        self.calls.append(f"{event} {Path(path).name}")
        if len(self.calls) - 1 == self.at:
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error), path)
            self.end()

    def end(self) -> None:
        self.running = False
        for path, kept in self.unsynced.items():
            if Path(path).is_file():
                os.truncate(path, kept + (Path(path).stat().st_size - kept) // 2)
        for old, new, content in reversed(self.renames):
            if new.is_file():
                new.rename(old)
                if content is not None:
                    new.write_bytes(content)
        os._exit(KILLED)


def begin(call: Callable[[], object], faults: Faults | None = None) -> tuple[int, int]:
    """Runs a function in a forked child; returns its id and the pipe that its text comes through."""
    here, there = os.pipe()
    if (child := os.fork()) == 0:
        code, text = 1, ""
        try:
            os.close(here)
            if faults is not None:
                faults.install()
            found = call()
            code, text = 0, str(len(faults.calls) if faults else found)
        except BaseException as error:
            text = f"{type(error).__module__}.{type(error).__name__}\n{traceback.format_exc()}"
        finally:
            if faults is not None:
                faults.running = False
            os.write(there, text.encode()[-60_000:])
            os._exit(code)
    os.close(there)
    return child, here


def end(child: int, pipe: int) -> tuple[int, str]:
    """Waits for a child; returns its exit code and its text."""
    with os.fdopen(pipe, "rb") as file:
        text = file.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def in_child(call: Callable[[], object], faults: Faults | None = None) -> tuple[int, str]:
    """Runs a function in a forked child; returns its exit code and its text: the number of calls that write, the result, or the traceback.
    Exit codes: 0, 1 for an exception, 137 for an end by `faults`."""
    return end(*begin(call, faults))
