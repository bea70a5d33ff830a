"""Atomic files with digests: a JSON file beside a file of tensors.

The JSON file contains the SHA-256 of the file of tensors and its own checksum. To edit it by hand, delete its line `checksum`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import FileFormatError, StorageError
from composable_energy.locks import runs
from composable_energy.paths import real_path

_TENSORS_DIGEST, _OWN_DIGEST = "tensors_sha256", "checksum"
LARGEST_CONFIG = 64 * 2**20
"""The largest size of a JSON file, in bytes."""


def digest_of(tensors: Mapping[str, Tensor], metadata: object = None) -> str:
    """Returns the hexadecimal digest of tensors and metadata.

    Args:
        tensors: Dense tensors by name. Names, dtypes, shapes and bits count, the order does not.
        metadata: JSON data; None adds nothing.
    """
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    if metadata is not None:
        whole.update(json.dumps(metadata, sort_keys=True).encode())
    return whole.hexdigest()


def config_bytes(body: Mapping[str, Any], tensors: bytes) -> bytes:
    """Returns the bytes of the JSON file: the data and both digests.

    Args:
        body: JSON data with finite numbers.
        tensors: The bytes of the file of tensors.
    """
    body = {**body, _TENSORS_DIGEST: hashlib.sha256(tensors).hexdigest()}
    return (json.dumps({**body, _OWN_DIGEST: _checksum(body)}, indent=1, allow_nan=False) + "\n").encode()


def read_config(path: Path) -> dict[str, Any]:
    """Returns the data of the JSON file with its digests, which `check_config` checks.

    Raises:
        FileFormatError: The file cannot be read, or is not a JSON object with finite numbers and unique keys.
    """
    return parse_config(read_config_bytes(path), path)


def read_config_bytes(path: Path) -> bytes:
    """Returns the content of the JSON file, for `parse_config`.

    Raises:
        FileFormatError: The file cannot be read, or is too large.
    """
    return read_bytes(path, LARGEST_CONFIG)


def parse_config(data: bytes, path: Path) -> dict[str, Any]:
    """Returns the data of the content of a JSON file, as `read_config`.

    Raises:
        FileFormatError: It is not a JSON object with finite numbers and unique keys.
    """

    def parse_finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text} is no finite number")
        return number

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        config = json.loads(data, parse_float=parse_finite, parse_constant=parse_finite, object_pairs_hook=build_object)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise FileFormatError(f"{path} holds a {type(config).__name__}, expected an object.")
    return config


def check_config(config: dict[str, Any], path: Path) -> str | None:
    """Removes both digests from the data of a JSON file, checks its own, and returns that of the tensors, if there is one.

    Raises:
        FileFormatError: The data have changed since they were written.
    """
    checksum = config.pop(_OWN_DIGEST, None)
    if checksum is not None and checksum != _checksum(config):
        raise FileFormatError(f"{path} has changed since it was written. If you edited it, delete its line `{_OWN_DIGEST}`.")
    return config.pop(_TENSORS_DIGEST, None)


def read_tensors(path: Path, digest: str | None, config: str, *, unchecked: bool = False) -> dict[str, Tensor]:
    """Returns the tensors of a file by name.

    Args:
        path: The file.
        digest: Its SHA-256.
        config: The name of the JSON file, for the error.
        unchecked: Whether to ignore the digest, for files of a version without one.

    Raises:
        FileFormatError: The file is missing, damaged, or has another digest.
    """
    data = read_bytes(path)
    if not unchecked and hashlib.sha256(data).hexdigest() != digest:
        raise FileFormatError(f"{path} is not the file that {config} was written with: it is damaged, or from another folder.")
    try:
        return _load_tensors(data)
    except Exception as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error


def tensors_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Returns the content of a file of tensors.

    Raises:
        MemoryError: There is not enough memory.
        ValueError: A tensor has a type that cannot be written, or shares memory with another one.
    """
    import safetensors.torch

    bytearray(3 * sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))  # else safetensors would end the process
    return safetensors.torch.save(dict(tensors), metadata)


def parse_tensors(data: bytes, key: str, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the JSON object in the metadata of a file of tensors, and the tensors by name.

    Args:
        data: The content of the file.
        key: The key of the JSON object.
        path: The file, for errors.

    Raises:
        FileFormatError: The file is damaged, or has no such object.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        record = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][key])
        if not isinstance(record, dict):
            raise ValueError(f"its metadata is a {type(record).__name__}")
        return record, _load_tensors(data)
    except Exception as error:  # various errors of various damages
        raise FileFormatError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _load_tensors(data: bytes) -> dict[str, Tensor]:
    """Returns the tensors of a file, which may be no archive at the same time: another reader would find other things in that."""
    import safetensors.torch

    end = data.rfind(b"PK\5\6", max(len(data) - 2**16 - 22, 0))  # the last part of an archive; before it, the list of its files
    size = int.from_bytes(data[end + 12 : end + 16], "little")
    if end >= 0 and (data.startswith(b"PK\1\2", max(end - size, 0)) or data.startswith(b"PK\6\7", max(end - 20, 0))):
        raise ValueError("it is a zip archive, too")
    return safetensors.torch.load(data)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file atomically: after a crash it has its old or its new content. A symbolic link stays, and its target is replaced.

    Raises:
        StorageError: The file cannot be written; its old content is intact.
    """
    replace_files({path: data})


def replace_files(files: Mapping[Path, bytes], mode: int | None = None) -> None:
    """Writes files of one folder: each atomically, and in their order, so that after a crash the first ones may be new.

    All contents are synced to temporary files before the first is renamed. Temporary files of several processes have different names.

    Args:
        files: The contents.
        mode: The permissions of new files; None for the default. A file that is replaced keeps its own.

    Raises:
        StorageError: A file cannot be written.
    """
    token, ready = f"{os.getpid()}-{secrets.token_hex(4)}", []
    path = next(iter(files))
    try:
        for path, data in files.items():
            target = real_path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(f".{target.name}.{token}.new")
            ready.append((fresh, target))
            _write_through(fresh, data, _mode_of(target, mode))
        for fresh, path in ready:
            fresh.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        failure = StorageError(f"{path} cannot be written ({error.strerror or error}): free some space, or give another place.")
        failure.errno = error.errno
        raise failure from error
    finally:
        for fresh, _ in ready:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Deletes the temporary files of `replace_file` for a path whose processes have ended, such as killed ones."""
    path = real_path(path)
    known = re.compile(rf"\.{re.escape(path.name)}\.(\d+)-[0-9a-f]{{8}}\.new")
    with contextlib.suppress(OSError):
        for entry in path.parent.iterdir():
            match = known.fullmatch(entry.name)
            if match and not runs(int(match[1])):
                entry.unlink(missing_ok=True)


def read_bytes(path: Path, largest: int | None = None) -> bytes:
    """Returns the content of a regular file. A pipe or a device, which may never end, is refused.

    Args:
        path: The file.
        largest: The largest size in bytes; None for no limit.

    Raises:
        FileFormatError: The file cannot be read, is too large or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FileFormatError(f"{path} cannot be read: it is no regular file.")
            if largest is not None and status.st_size > largest:
                raise FileFormatError(f"{path} has {status.st_size} bytes, and {largest} at most are read.")
            return file.read()
    except (OSError, MemoryError, ValueError) as error:  # the last for a path with a null character
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error or 'out of memory'}.") from error


def _write_through(path: Path, data: bytes, mode: int | None) -> None:
    """Writes a new file and syncs it to the disk."""
    with path.open("xb") as file:
        if mode is not None:
            path.chmod(mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _mode_of(path: Path, default: int | None) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode) & 0o777
    except OSError:
        return default


def _sync_folder(folder: Path) -> None:
    """Syncs the names in a folder to the disk."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
