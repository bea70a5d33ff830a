"""The two files of a saved energy, written atomically and checked when read.

`config.json` contains the SHA-256 of `model.safetensors` and its own checksum. To edit it by hand, delete its line `checksum`.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from composable_energy.errors import ExpressionError, FileFormatError
from composable_energy.files import check_config, config_bytes, read_config, read_tensors, write_through

__all__ = ["CONFIG", "FORMAT", "TENSORS", "read", "write"]

FORMAT = 2
CONFIG = "config.json"
TENSORS = "model.safetensors"


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes both files to a temporary folder and renames it.

    Args:
        folder: A new or empty folder, or one with a saved energy.
        config: JSON data.
        tensors: The tensors by name.

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
    text = config_bytes({"format": FORMAT, "written_by": f"composable-energy {__version__}", **config}, data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.{part}" for part in ("new", "old"))
    try:
        fresh.mkdir()
        write_through(fresh / TENSORS, data)
        write_through(fresh / CONFIG, text)
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
    """Returns the config without format, version and digests, and the tensors by name.

    Raises:
        FileFormatError: A file is missing, corrupt, truncated or of another format, or the files do not belong together.
    """
    config = read_config(folder / CONFIG)
    version = config.get("format")
    writer = config.get("written_by", "an unknown version")
    if type(version) is not int or version < 1:
        raise FileFormatError(f"{folder / CONFIG} is not a saved energy: it has no format number.")
    if version < FORMAT:
        raise FileFormatError(
            f"{folder / CONFIG} has format {version}, written by {writer}; this version reads format {FORMAT}. Load it with the "
            "version that wrote it, and build and save the expression with this one."
        )
    if version > FORMAT:
        raise FileFormatError(
            f"{folder / CONFIG} has format {version}, written by {writer}; this version reads format {FORMAT}: upgrade composable-energy."
        )
    digest = check_config(config, folder / CONFIG)
    body = {key: value for key, value in config.items() if key not in ("format", "written_by")}
    return body, read_tensors(folder / TENSORS, digest, CONFIG)


def _check_target(folder: Path) -> None:
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir()}
        if names == {CONFIG, TENSORS} and _is_saved_energy(folder / CONFIG):
            return
        if names:
            shown = ", ".join(sorted(names)[:5])
            raise FileFormatError(f"{folder} holds something else than a saved energy ({shown}); choose a new or empty folder.")
    elif folder.exists():
        raise FileFormatError(f"{folder} is a file; choose a folder.")


def _is_saved_energy(path: Path) -> bool:
    try:
        return str(json.loads(path.read_bytes()).get("written_by", "")).startswith("composable-energy")
    except (ValueError, AttributeError, RecursionError):
        return False
