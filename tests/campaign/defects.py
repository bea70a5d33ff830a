"""Defects that are planted to see that the campaign finds them: each undoes one precaution of the library, in a process of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import composable_energy.files as core_files
import composable_energy.locks as locks
import composable_energy.saving.files as saved_files
from composable_energy.sampling import checkpoint, loop

__all__ = ["DEFECTS"]


def _write(path: Path, data: bytes, mode: int | None) -> None:
    path.write_bytes(data)


def _replace_in_place(files: Mapping[Path, bytes], mode: int | None = None) -> None:
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _config_first(files: Mapping[Path, bytes], mode: int | None = None, real: Callable[..., Any] = core_files.replace_files) -> None:
    for path, data in reversed(files.items()):
        real({path: data}, mode)


@contextlib.contextmanager
def _unlocked(*arguments: Any, **options: Any):
    arguments[0].parent.mkdir(parents=True, exist_ok=True)
    yield


def _unchecked(path: Path, digest: str | None, config: str) -> Any:
    return core_files.read_tensors(path, digest, config, unchecked=True)


def _patch(target: object, name: str, value: object) -> Callable[[], Any]:
    return lambda: mock.patch.object(target, name, value)


def _raw_errors(files: Mapping[Path, bytes], mode: int | None = None, real: Callable[..., Any] = core_files.replace_files) -> None:
    try:
        real(files, mode)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 5)) from None


DEFECTS: dict[str, tuple[str, int, Callable[[], Any]]] = {
    "no sync of a file": ("kills", 60, _patch(core_files, "_write_through", _write)),
    "no atomic replacement of a save": ("kills", 60, _patch(saved_files, "replace_files", _replace_in_place)),
    "no atomic replacement of a checkpoint": (
        "kills",
        80,
        _patch(checkpoint, "replace_file", lambda path, data: _replace_in_place({path: data})),
    ),
    "config first": ("kills", 80, _patch(saved_files, "replace_files", _config_first)),
    "no sweep of a save": ("kills", 60, _patch(saved_files, "_remove_litter", lambda folder: None)),
    "no sweep of a checkpoint": ("kills", 80, _patch(checkpoint, "remove_leftovers", lambda path: None)),
    "raw errors of the disk": ("full disk", 60, _patch(saved_files, "replace_files", _raw_errors)),
    "raw errors of a checkpoint": ("full disk", 80, _patch(checkpoint, "replace_file", lambda path, data: _raw_errors({path: data}))),
    "no digest": ("files", 300, _patch(saved_files, "read_tensors", _unchecked)),
    "no digest of a checkpoint": ("files", 300, _patch(checkpoint, "digest_of", lambda tensors, metadata=None: None)),
    "no lock of a save": ("races", 6, _patch(saved_files, "exclusive", _unlocked)),
    "readers that give up": ("races", 10, _patch(saved_files, "_TRIES", 0)),
    "callbacks share tensors": ("surroundings", 40, _patch(loop, "_copied", lambda value: value)),
    "no lock file is removed": ("kills", 60, _patch(locks.Path, "unlink", lambda self, missing_ok=False: None)),
}
"""For each defect: the area, the number of trials, and what plants it."""
