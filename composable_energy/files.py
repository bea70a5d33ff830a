"""Atomic files with digests: a JSON file beside a file of tensors.

The JSON file contains the SHA-256 of the file of tensors and its own checksum. To edit it by hand, delete its line `checksum`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import FileFormatError

__all__ = [
    "LARGEST_CONFIG",
    "check_config",
    "config_bytes",
    "digest_of",
    "read_config",
    "read_tensors",
    "remove_leftovers",
    "replace_file",
    "write_through",
]

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

    def parse_finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text} is no finite number")
        return number

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    data = _read_bytes(path, LARGEST_CONFIG)
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
    import safetensors.torch

    data = _read_bytes(path)
    if not unchecked and hashlib.sha256(data).hexdigest() != digest:
        raise FileFormatError(f"{path} is not the file that {config} was written with: it is damaged, or from another folder.")
    try:
        return safetensors.torch.load(data)
    except Exception as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error


def write_through(path: Path, data: bytes) -> None:
    """Writes a file and syncs it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file atomically: after a crash it has its old or its new content.

    The content is synced before the file is renamed. Temporary files of several processes have different names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.new")
    try:
        write_through(fresh, data)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_leftovers(path: Path) -> None:
    """Deletes the temporary files of `replace_file` that killed processes left; for a file that one process writes."""
    for fresh in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        fresh.unlink(missing_ok=True)


def _read_bytes(path: Path, largest: int | None = None) -> bytes:
    try:
        if largest is not None and path.stat().st_size > largest:
            raise FileFormatError(f"{path} has {path.stat().st_size} bytes; a config has {largest} at most.")
        return path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}.") from error


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
