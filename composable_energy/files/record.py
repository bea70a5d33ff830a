"""Records: a JSON header and tensors in one safetensors file with a digest of both; and paths, locks, and files read within bounds.

Energies, checkpoints of sampling and of training, and models are records, told apart by their `kind`. Nothing in them is code. Header and
digest are in the metadata of the file, under one key, so that equal records have equal bytes. Files are written atomically.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from composable_energy.errors import FileFormatError, OptionError, StorageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

exists, is_file, is_directory = os.path.exists, os.path.isfile, os.path.isdir  # those of `Path` raise OSError for a name that is too long
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path with the home of `~` and `~user`; raises `OptionError` if it is no path of this system."""
    try:
        if not (text := os.fsencode(path)) or b"\0" in text:
            raise ValueError("it has a null character" if text else "it is empty")
        return Path(path).expanduser()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{str(path)!r:.200} is no path: {str(error).rstrip('.')}.") from error


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock of a file, `.NAME.lock` beside it; the operating system releases it when its owner ends, also after a kill."""
    place = (path := _real_path(path)).with_name(f".{path.name}.lock")
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
    """Returns the content of a regular file of at most `largest` bytes. A pipe or a device, which may never end, is refused."""
    reason: object
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG((status := os.fstat(descriptor)).st_mode):
                reason = "it is no regular file"
            elif largest is not None and status.st_size > largest:
                reason = f"it has {status.st_size} bytes, and {largest} at most are read"
            else:
                return file.read()
    except (OSError, MemoryError, ValueError) as error:  # the last for a path with a null character
        reason = getattr(error, "strerror", None) or error or "out of memory"
    raise FileFormatError(f"{path} cannot be read: {reason}.")


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file atomically: after a crash or an error it has its old or its new content. Links and permissions stay."""
    fresh = (target := _real_path(path)).with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        leftover = re.compile(rf"\.{re.escape(target.name)}\.(\d+)-[0-9a-f]{{8}}\.new")
        with contextlib.suppress(OSError):
            for entry in target.parent.iterdir():
                if (match := leftover.fullmatch(entry.name)) and not _runs(int(match[1])):  # of a process that was killed
                    entry.unlink(missing_ok=True)
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
        lost = "since the working directory was deleted: change to another, or give an absolute path"
        raise StorageError(f"{path} leads nowhere, {lost}.") from error


def _runs(pid: int) -> bool:
    """Returns whether there is a process with an id; True where that is unknown."""
    try:
        return os.name != "posix" or os.kill(pid, 0) is None
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True


def memory_of(device: "torch.device") -> int | None:
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


ENERGY_FILE = "energy.safetensors"
"""The name of the record in the folder of a saved energy."""
_KEY = "composable_energy"


class DamagedFileError(FileFormatError):
    """A file is no record, or has changed since it was written."""


def digest_of(tensors: Mapping[str, "Tensor"], metadata: object = None) -> str:
    """Returns the hexadecimal digest of dense tensors, by names, dtypes, shapes and bits in any order, and of JSON data."""
    import torch

    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data)  # one number may have the stride 0
    if metadata is not None:
        whole.update(json.dumps(metadata, sort_keys=True).encode())
    return whole.hexdigest()


def write_record(path: Path, kind: str, version: int, header: Mapping[str, Any], tensors: Mapping[str, "Tensor"]) -> None:
    """Replaces a file by a record of a kind, such as `energy`, and a version; after a crash it has its old or its new content."""
    import safetensors.torch

    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    release = import_module("composable_energy").__version__  # `import composable_energy` would be an import upwards
    record = {"kind": kind, "version": version, "written_by": f"composable-energy {release}", "header": header}
    record = json.loads(json.dumps(record))  # as it will be read
    bytearray(3 * sum(tensor.numel() * tensor.element_size() for tensor in plain.values()))  # else safetensors would end the process
    replace_file(path, safetensors.torch.save(plain, {_KEY: json.dumps({**record, "digest": digest_of(plain, record)})}))


def read_record(path: Path, kind: str, version: int, *, weights: bool = False) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Returns the header and the tensors of a record; raises a `FileFormatError` if it is damaged, or of another kind or version, or if
    its tensors are weights and one has NaN."""
    import safetensors.torch

    data = read_bytes(path)
    try:
        # A file that is an archive, too, is refused: another reader would find other things in that. Its last part lists its files.
        end = data.rfind(b"PK\5\6", max(len(data) - 2**16 - 22, 0))
        size = int.from_bytes(data[end + 12 : end + 16], "little")
        if end >= 0 and (data.startswith(b"PK\1\2", max(end - size, 0)) or data.startswith(b"PK\6\7", max(end - 20, 0))):
            raise ValueError("it is a zip archive, too")
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if (record := json.loads(metadata[_KEY], object_pairs_hook=_unique)).pop("digest") != digest_of(tensors, record):
            raise ValueError("it has changed since it was written")
        number, writer, header = record["version"], str(record["written_by"])[:100], dict(record["header"])
    except Exception as error:  # various errors of various damages
        raise DamagedFileError(f"{path} is damaged, or no record: {type(error).__name__}: {error}.") from error
    if record["kind"] != kind:
        raise FileFormatError(f"{path} holds {record['kind']!r}, expected {kind!r}.")
    if number != version:
        advice = f"this version of composable-energy reads {version}: use the version that wrote it"
        raise FileFormatError(f"{path} has version {number}, written by {writer!r}; {advice}.")
    if weights and (odd := next((name for name, one in tensors.items() if one.is_floating_point() and one.float().isnan().any()), None)):
        raise FileFormatError(f"{path} has NaN in its tensor {odd!r}, as after a training that diverged: train again, and save that.")
    return header, tensors


def is_saved(folder: Path) -> bool:
    """Returns whether a folder holds a saved energy."""
    return is_file(folder / ENERGY_FILE)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
