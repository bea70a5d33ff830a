"""Training checkpoints as records: tensors by name, and everything else as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from composable_energy.errors import FileFormatError
from composable_energy.files import DamagedFileError, read_record, write_record

_VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Args:
        step: The number of steps taken.
        metadata: Plain data: the settings of the run, and the states of its monitor and of the gradient scaler.
        tensors: Tensors by name, such as `model.weight`.
    """

    step: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """Returns the tensors of a part, such as `model`, by their names within it."""
        return {key[len(name) + 1 :]: tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically: the data reach the disk before the file gets its name.

    Raises:
        OSError: The file cannot be written.
    """
    write_record(path, "training", _VERSION, {"step": checkpoint.step, "metadata": checkpoint.metadata}, checkpoint.tensors)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and checks its digest.

    Raises:
        DamagedFileError: The file is not a checkpoint, or is damaged.
        FileFormatError: It has the format of another version.
    """
    header, tensors = read_record(path, "training", _VERSION)
    step, metadata = header.get("step"), header.get("metadata")
    if type(step) is not int or step < 0 or not isinstance(metadata, dict):
        raise DamagedFileError(f"{path} has no number of steps or no settings.")
    return Checkpoint(step, metadata, tensors)


def check_tensors(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    """Raises unless saved tensors have the names, shapes and dtypes of a model's tensors.

    Args:
        saved: The tensors of the checkpoint.
        expected: The tensors of the model.
        name: The checkpoint, for the error.

    Raises:
        FileFormatError: They differ.
    """

    def describe(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

    wrong = [f"{key} is new" for key in expected if key not in saved]
    wrong += [f"{key} is gone" for key in saved if key not in expected]
    wrong += [
        f"{key} was {describe(saved[key])}, is {describe(tensor)}"
        for key, tensor in expected.items()
        if key in saved and describe(saved[key]) != describe(tensor)
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise FileFormatError(f"{name} is of another model: {'; '.join(wrong[:5])}{more}. Train the same model, or give another folder.")
