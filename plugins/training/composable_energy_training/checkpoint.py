"""Checkpoints of a run: one safetensors file each, written all or nothing; the last few are kept.

Nothing in them is code. Tensors stand by name; all else is JSON in the file's metadata, with a digest of the tensors.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from composable_energy.errors import FileFormatError, StorageError
from composable_energy.files import digest_of

__all__ = ["Checkpoints", "Saved", "check_fits"]

_FORMAT = 2
_KEY = "composable_energy_training"
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Args:
        step: The steps that were made.
        told: Plain data: the settings of the run and what its monitor saw.
        tensors: By name.
    """

    step: int
    told: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def under(self, place: str) -> dict[str, Tensor]:
        """Returns the tensors whose names begin with a place and a dot, by the rest of their names."""
        return {name[len(place) + 1 :]: tensor for name, tensor in self.tensors.items() if name.startswith(f"{place}.")}


class Checkpoints:
    """The checkpoints of a run; without a folder only the last one, in memory.

    Args:
        folder: Where they are, or None.
        keep: How many.
    """

    def __init__(self, folder: Path | None, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._last: Saved | None = None

    def path(self, step: int) -> Path | None:
        """Returns the file of a step."""
        return None if self.folder is None else self.folder / f"step-{step:08d}.safetensors"

    def steps(self) -> list[int]:
        """Returns the steps of all that there are, in order."""
        if self.folder is None:
            return [] if self._last is None else [self._last.step]
        found = self.folder.glob("step-*.safetensors")
        return sorted(int(match[1]) for path in found if (match := _NAME.fullmatch(path.name)))

    def write(self, saved: Saved) -> Path | None:
        """Writes a checkpoint and removes those that are too many; whatever happens meanwhile, the one before it stays whole.

        Returns:
            Its file, or None.

        Raises:
            StorageError: The disk is full, or does not let us write.
        """
        plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in saved.tensors.items()}
        path = self.path(saved.step)
        if path is None:
            self._last = Saved(saved.step, saved.told, plain)
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, _packed(saved, plain))
        except OSError as error:
            steps = self.steps()
            safe = f"the checkpoint of step {steps[-1]} is whole" if steps else "there is none yet"
            raise StorageError(
                f"The checkpoint {path} could not be written: {error.strerror or error}. Make room or give another folder, and start the "
                f"same command again; {safe}."
            ) from error
        for step in self.steps()[: -self.keep]:
            self.drop(step)
        return path

    def read(self) -> Saved | None:
        """Returns the newest that is whole; None if there is none at all. A damaged one is left out with a warning.

        Raises:
            FileFormatError: All are damaged, or the newest is of another format.
        """
        if self.folder is None:
            return self._last
        for path in self.folder.glob(".step-*.new"):  # of a process that was killed while it wrote
            path.unlink(missing_ok=True)
        steps = self.steps()
        for step in reversed(steps):
            path = self.folder / f"step-{step:08d}.safetensors"
            try:
                return _unpacked(path)
            except _Damaged as error:
                if step == steps[0]:
                    raise FileFormatError(f"{error}. No checkpoint is left in {self.folder}: delete the folder to begin anew.") from error
                warnings.warn(f"{error}; going on from the one before it.", stacklevel=2)
                path.unlink(missing_ok=True)
        return None

    def drop(self, step: int) -> None:
        """Removes the checkpoint of a step."""
        path = self.path(step)
        if path is not None:
            path.unlink(missing_ok=True)


class _Damaged(Exception):  # noqa: N818
    """A file is no checkpoint any more."""


def check_fits(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Raises if tensors are not those of a model.

    Args:
        saved: What the checkpoint has, by name.
        own: What the model has.
        what: How the checkpoint is called.

    Raises:
        FileFormatError: They are not; the message says which differ.
    """

    def told(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

    wrong = [f"{name} is new" for name in own if name not in saved]
    wrong += [f"{name} is gone" for name in saved if name not in own]
    wrong += [
        f"{name} was {told(saved[name])}, is {told(tensor)}"
        for name, tensor in own.items()
        if name in saved and told(saved[name]) != told(tensor)
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise FileFormatError(
            f"{what} is of another model: {'; '.join(wrong[:5])}{more}. Train the model that it was made with, or give another folder."
        )


def _packed(saved: Saved, tensors: Mapping[str, Tensor]) -> bytes:
    import safetensors.torch

    from composable_energy import __version__

    told = {
        "format": _FORMAT,
        "written_by": f"composable-energy {__version__}",
        "step": saved.step,
        "digest": digest_of(tensors),
        "told": saved.told,
    }
    return safetensors.torch.save(dict(tensors), {_KEY: json.dumps(told)})


def _unpacked(path: Path) -> Saved:
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        told = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        number, writer = told["format"], told["written_by"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _Damaged(f"{path} is no checkpoint, or damaged ({error})") from None
    if number != _FORMAT:
        raise FileFormatError(
            f"{path} has format {number}, written by {writer}; this version reads {_FORMAT}: use that version, or give another folder."
        )
    try:
        tensors = safetensors.torch.load(data)
        if digest_of(tensors) != told["digest"]:
            raise _Damaged(f"{path} is damaged (its digest is another)")
        return Saved(told["step"], told["told"], tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _Damaged(f"{path} is damaged ({error})") from None


def _replace(path: Path, data: bytes) -> None:
    """Puts a file in place, on the disk itself before its name is."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
