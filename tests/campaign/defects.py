"""Defects that are planted to see that the campaign finds them: each undoes one precaution of the library, in a process of its own."""

from __future__ import annotations

import contextlib
import gzip
import os
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import composable_energy.files as core_files
import composable_energy.locks as locks
import composable_energy.registry.registry as registry
import composable_energy.saving.files as saved_files
import composable_energy.saving.reader as reader
import composable_energy_cli
import composable_energy_cli.parser as cli_parser
import composable_energy_image.data.cifar_mnist as idx
import composable_energy_training.checkpoint as training_checkpoint
import composable_energy_training.checkpoint_store as checkpoint_store
import composable_energy_training.commands.recipes as recipes
import composable_energy_ui.server as ui_server
from composable_energy import unpacked
from composable_energy.sampling import checkpoint, context, driver, loop, ranks

_HELD: list[Any] = []


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


def _shared_name(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _short_write(path: Path, data: bytes, mode: int | None, real: Callable[..., Any] = core_files._write_through) -> None:
    with contextlib.suppress(OSError):
        real(path, data, mode)
    path.touch()


def _with_autocast(energy: Any, real: Callable[..., Any] = context.evaluation_context) -> Any:
    stack = contextlib.ExitStack()
    wanted = torch.is_autocast_enabled("cpu")
    stack.enter_context(real(energy))
    if wanted:
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
    return stack


def _around_run(extra: Callable[[], object], real: Callable[..., Any] = loop.SamplingLoop.run) -> Callable[..., Any]:
    def run(self: Any) -> None:
        extra()
        real(self)

    return run


def _kept_open(folder: Path) -> None:
    os.fsync(os.open(folder, os.O_RDONLY))


def _unlimited(path: Path, most: int, real: Callable[..., Any] = unpacked.read_gzip) -> bytes:
    real(path, 1)
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error):
        return real(path, most)


DEFECTS: dict[str, tuple[str, int, Callable[[], Any]]] = {
    "no sync of a file": ("kills in save", 60, _patch(core_files, "_write_through", _write)),
    "no sync of a folder": ("kills in save", 100, _patch(core_files, "_sync_folder", lambda folder: None)),
    "no atomic replacement of a save": ("kills in save", 60, _patch(saved_files, "replace_files", _replace_in_place)),
    "no atomic replacement of a checkpoint": (
        "kills in sampling",
        60,
        _patch(checkpoint, "replace_file", lambda path, data: _replace_in_place({path: data})),
    ),
    "no atomic replacement in a training": (
        "kills in training",
        60,
        _patch(training_checkpoint, "replace_file", lambda path, data: _replace_in_place({path: data})),
    ),
    "config first": ("kills in save", 80, _patch(saved_files, "replace_files", _config_first)),
    "no sweep of a save": ("kills in save", 60, _patch(saved_files, "_remove_litter", lambda folder: None)),
    "no sweep of a checkpoint": ("kills in sampling", 60, _patch(checkpoint, "remove_leftovers", lambda path: None)),
    "no lock file is removed": ("kills in save", 60, _patch(locks.Path, "unlink", lambda self, missing_ok=False: None)),
    "a temporary name for all": ("kills in sampling", 60, _patch(checkpoint, "replace_file", _shared_name)),
    "raw errors of the disk": ("full disk", 60, _patch(saved_files, "replace_files", _raw_errors)),
    "raw errors of a checkpoint": ("full disk", 80, _patch(checkpoint, "replace_file", lambda path, data: _raw_errors({path: data}))),
    "a short write that is ignored": ("full disk", 60, _patch(core_files, "_write_through", _short_write)),
    "no digest": ("files", 3000, _patch(saved_files, "read_tensors", _unchecked)),
    "no digest of a checkpoint": ("files", 1000, _patch(checkpoint, "digest_of", lambda tensors, metadata=None: None)),
    "no digest in a training": ("files", 4000, _patch(training_checkpoint, "digest_of", lambda tensors, metadata=None: None)),
    "no limit of nodes": ("files", 300, _patch(reader, "check_size", lambda nodes: None)),
    "no lock of a save": ("readers and writers", 20, _patch(saved_files, "exclusive", _unlocked)),
    "no lock of a checkpoint": ("races", 40, _patch(checkpoint, "exclusive", _unlocked)),
    "no lock of a training": ("races", 60, _patch(checkpoint_store, "exclusive", _unlocked)),
    "readers that give up": ("readers and writers", 20, _patch(saved_files, "_TRIES", 0)),
    "callbacks share tensors": ("surroundings", 40, _patch(loop, "_copied", lambda value: value)),
    "autocast stays on": ("surroundings", 60, _patch(driver, "evaluation_context", _with_autocast)),
    "the global seed is used": ("numerics", 20, _patch(loop.SamplingLoop, "run", _around_run(lambda: torch.rand(1)))),
    "a lost process is a raw error": ("ranks", 20, _patch(ranks, "detect_loss", contextlib.nullcontext)),
    "the clock of the wall": ("clocks", 100, _patch(locks, "time", mock.Mock(monotonic=lambda: time.time(), sleep=time.sleep))),
    "no limit of pictures": ("pictures", 200, _patch(unpacked, "LARGEST_PICTURE", 2**62)),
    "no limit of what is unpacked": ("pictures", 200, _patch(idx, "read_gzip", _unlimited)),
    "escapes are printed": ("command line", 200, _patch(cli_parser, "printable", str)),
    "escapes in errors are printed": ("command line", 400, _patch(composable_energy_cli, "printable", str)),
    "escapes in recipes are printed": ("command line", 200, _patch(recipes, "printable", str)),
    "errors whose text raises": ("plug-ins", 100, _patch(registry, "describe_error", str)),
    "requests of other sites": ("playground: requests", 200, _patch(ui_server._Handler, "_same_site", lambda self: True)),
    "requests of any size": ("playground: requests", 400, _patch(ui_server, "_LARGEST", 10**12)),
    "open files are kept": ("leaks", 2, _patch(core_files, "_sync_folder", _kept_open)),
    "memory is kept": ("leaks", 2, _patch(loop.SamplingLoop, "run", _around_run(lambda: _HELD.append(b"x" * 200_000)))),
}
"""For each defect: the area, the number of trials, and what plants it."""
