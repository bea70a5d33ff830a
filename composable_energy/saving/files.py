"""The two files of a saved energy, written atomically and checked when read.

`config.json` contains the SHA-256 of the file of tensors and its own checksum. To edit it by hand, delete its line `checksum`. The tensors
are in `model.safetensors`; a save over another one writes them to a file named by its content, `model-0123456789abcdef.safetensors`, and
`config.json`, which names it, is replaced last.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor

from composable_energy.errors import ExpressionError, FileFormatError, StorageError
from composable_energy.files import (
    check_config,
    config_bytes,
    parse_config,
    read_config_bytes,
    read_tensors,
    replace_files,
    tensors_bytes,
)
from composable_energy.locks import exclusive
from composable_energy.paths import real_path
from composable_energy.printable import one_line

FORMAT = 2
CONFIG = "config.json"
TENSORS = "model.safetensors"
_FILE = "tensors_file"  # the key with the name of the file of tensors, if that is another
_BY_CONTENT = re.compile(r"model-[0-9a-f]{16}\.safetensors")
_TEMPORARY = re.compile(r"\.(config\.json|model(-[0-9a-f]{16})?\.safetensors)\.\d+-[0-9a-f]{8}\.new")
_LOCK = f".{CONFIG}.lock"
WAIT = 60.0
"""Seconds that a save waits for another process that saves to the same folder."""
_TRIES = 100  # of a reader, while the folder is replaced again and again


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes both files, so that a reader, or a crash at any time, finds the old or the new ones.

    Args:
        folder: A new or empty folder, or one with a saved energy.
        config: JSON data.
        tensors: The tensors by name.

    Raises:
        FileFormatError: The folder holds other files, or is a file.
        ExpressionError: A tensor has a type that cannot be written.
        StorageError: The files cannot be written; what the folder held is intact.
    """
    from composable_energy import __version__

    folder = real_path(folder)
    _check_target(folder)
    try:
        data = tensors_bytes({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})
    except MemoryError:
        raise
    except Exception as error:
        raise ExpressionError(f"The tensors cannot be written: {error}") from error
    created = not folder.exists()
    try:
        with exclusive(folder / CONFIG, wait=WAIT):
            _check_target(folder)
            _remove_litter(folder)
            replaces = (folder / CONFIG).exists()
            name = f"model-{hashlib.sha256(data).hexdigest()[:16]}.safetensors" if replaces else TENSORS
            head = {"format": FORMAT, "written_by": f"composable-energy {__version__}", **({_FILE: name} if replaces else {})}
            text = config_bytes({**head, **config}, data)
            mode = (folder / CONFIG).stat().st_mode & 0o777 if replaces else None
            try:
                replace_files({folder / name: data, folder / CONFIG: text}, mode)
            except BaseException:
                if not (folder / CONFIG).exists():  # tensors alone would look like somebody else's file to the next save
                    with contextlib.suppress(OSError):
                        (folder / name).unlink(missing_ok=True)
                raise
            _remove_litter(folder)
    except BaseException:
        if created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the config without format, version and digests, and the tensors by name.

    Raises:
        FileFormatError: A file is missing, corrupt, truncated or of another format, or the files do not belong together.
    """
    path = folder / CONFIG
    data = read_config_bytes(path)
    for _ in range(_TRIES):
        try:
            return _read(folder, data)
        except FileFormatError:
            before, data = data, read_config_bytes(path)
            if data == before:
                raise  # nobody has replaced it meanwhile
    return _read(folder, data)


def _read(folder: Path, data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = parse_config(data, folder / CONFIG)
    version = config.get("format")
    writer = one_line(config.get("written_by", "an unknown version"))[:100]
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
    body = {key: value for key, value in config.items() if key not in ("format", "written_by", _FILE)}
    return body, read_tensors(folder / _tensors_name(config, folder / CONFIG), digest, CONFIG)


def _tensors_name(config: Mapping[str, Any], path: Path) -> str:
    name = config.get(_FILE, TENSORS)
    if not (name == TENSORS or (isinstance(name, str) and _BY_CONTENT.fullmatch(name))):
        raise FileFormatError(f"{path} names the file of tensors {name!r}, expected {TENSORS}.")
    return name


def _check_target(folder: Path) -> None:
    """Raises unless a folder is new, empty, a saved energy, or what a killed `save` left of one."""
    try:
        if folder.is_dir():
            names = {entry.name for entry in folder.iterdir()}
            current = _current(folder)
            others = names - _litter(names, current) - ({CONFIG, current} if current else set())
            if others:
                shown = ", ".join(sorted(others)[:5])
                raise FileFormatError(f"{folder} holds something else than a saved energy ({shown}); choose a new or empty folder.")
        elif folder.exists():
            raise FileFormatError(f"{folder} is a file; choose a folder.")
    except OSError as error:  # such as a name that is too long
        raise StorageError(f"{folder} cannot be written ({error.strerror or error}): choose another folder.") from error


def _remove_litter(folder: Path) -> None:
    """Removes what killed saves left, and the tensors of the save before; the caller holds the lock."""
    names = {entry.name for entry in folder.iterdir()}
    for name in sorted(_litter(names, _current(folder)) - {_LOCK}, reverse=True):  # a temporary config last: it marks the others as ours
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def _litter(names: Set[str], current: str | None) -> set[str]:
    """Returns the names of files that a save made and that do not belong to the current one.

    Args:
        names: The names of the files in the folder.
        current: The file of tensors of the current save; None if there is none.
    """
    found = {name for name in names if name == _LOCK or _TEMPORARY.fullmatch(name) or (_BY_CONTENT.fullmatch(name) and name != current)}
    began = CONFIG not in names and any(name.startswith(f".{CONFIG}.") for name in found - {_LOCK})
    if current != TENSORS and (current or began):
        found.add(TENSORS)
    return found & names


def _current(folder: Path) -> str | None:
    """Returns the name of the file of tensors of a saved energy; None if the folder has none."""
    try:
        config = parse_config(read_config_bytes(folder / CONFIG), folder / CONFIG)
        return _tensors_name(config, folder / CONFIG) if str(config.get("written_by", "")).startswith("composable-energy") else None
    except FileFormatError:
        return None
