"""The two files of a saved energy: written all or nothing, read with nothing taken on trust.

`config.json` holds the SHA-256 of `model.safetensors`, and a checksum of itself; who edits it by hand removes the line `checksum`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from composable_energy.errors import ExpressionError, FileFormatError

__all__ = ["CONFIG", "FORMAT", "TENSORS", "read", "write"]

FORMAT = 2
CONFIG = "config.json"
TENSORS = "model.safetensors"
_LARGEST_CONFIG = 64 * 2**20


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes both files to a folder beside it, then puts that in place.

    Args:
        folder: A new or empty folder, or one with a saved energy.
        config: Plain data.
        tensors: By name.

    Raises:
        FileFormatError: The folder holds other files, or is a file.
        ExpressionError: A tensor has a type that cannot be written.
    """
    import safetensors.torch

    from composable_energy import __version__

    folder = folder.expanduser().resolve()
    _check_target(folder)
    try:
        data = safetensors.torch.save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})
    except Exception as error:
        raise ExpressionError(f"The tensors cannot be written: {error}") from error
    body = {
        "format": FORMAT,
        "written_by": f"composable-energy {__version__}",
        **config,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps({**body, "checksum": _checksum(body)}, indent=1, allow_nan=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.{part}" for part in ("new", "old"))
    try:
        fresh.mkdir()
        _write_through(fresh / TENSORS, data)
        _write_through(fresh / CONFIG, text.encode())
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the config without what only guards it, and the tensors by name.

    Raises:
        FileFormatError: A file is missing, corrupt, truncated, newer, or not the other's partner.
    """
    import safetensors.torch

    config = _parsed(_bytes(folder / CONFIG, _LARGEST_CONFIG), folder)
    version = config.pop("format", None)
    writer = config.pop("written_by", "an unknown version")
    if type(version) is not int or version < 1:
        raise FileFormatError(f"{folder / CONFIG} is no saved energy: it has no format number.")
    if version < FORMAT:
        raise FileFormatError(
            f"{folder / CONFIG} has format {version}, written by {writer}; this version reads format {FORMAT}. Load it with the "
            "version that wrote it, and build and save the expression with this one."
        )
    if version > FORMAT:
        raise FileFormatError(
            f"{folder / CONFIG} has format {version}, written by {writer}; this version reads format {FORMAT}: upgrade composable-energy."
        )
    checksum = config.pop("checksum", None)
    if checksum is not None and checksum != _checksum({"format": version, "written_by": writer, **config}):
        raise FileFormatError(f"{folder / CONFIG} was changed since it was written. If that was you, remove its line `checksum`.")
    data = _bytes(folder / TENSORS)
    if hashlib.sha256(data).hexdigest() != config.pop("tensors_sha256", None):
        raise FileFormatError(f"{folder / TENSORS} is not the file that {CONFIG} was written with: it is damaged, or from another energy.")
    try:
        return config, safetensors.torch.load(data)
    except Exception as error:
        raise FileFormatError(f"{folder / TENSORS} cannot be read: {error}") from error


def _check_target(folder: Path) -> None:
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir()}
        if names == {CONFIG, TENSORS} and _is_ours(folder / CONFIG):
            return
        if names:
            shown = ", ".join(sorted(names)[:5])
            raise FileFormatError(f"{folder} holds something else than a saved energy ({shown}); choose a new or an empty folder.")
    elif folder.exists():
        raise FileFormatError(f"{folder} is a file; choose a folder.")


def _is_ours(path: Path) -> bool:
    try:
        return str(json.loads(path.read_bytes()).get("written_by", "")).startswith("composable-energy")
    except (ValueError, AttributeError, RecursionError):
        return False


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _bytes(path: Path, largest: int | None = None) -> bytes:
    try:
        if largest is not None and path.stat().st_size > largest:
            raise FileFormatError(f"{path} has {path.stat().st_size} bytes; a config has {largest} at most.")
        return path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}.") from error


def _parsed(data: bytes, folder: Path) -> dict[str, Any]:
    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{text} is no finite number")
        return number

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        config = json.loads(data, parse_float=finite, parse_constant=finite, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{folder / CONFIG} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise FileFormatError(f"{folder / CONFIG} is no saved energy: it holds a {type(config).__name__}.")
    return config


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
