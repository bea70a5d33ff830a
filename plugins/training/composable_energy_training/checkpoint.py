"""The file format of training checkpoints: one safetensors file, written atomically.

Tensors are stored by name; everything else is JSON in the file's metadata, with a digest of both. No code is stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from composable_energy.errors import FileFormatError
from composable_energy.files import digest_of, parse_tensors, read_bytes, replace_file, tensors_bytes

_FORMAT = 2
_KEY = "composable_energy_training"
_METADATA = "told"  # part of the format


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


class DamagedCheckpoint(Exception):  # noqa: N818
    """A file is not a checkpoint, or is damaged."""


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically: the data reach the disk before the file gets its name.

    Raises:
        OSError: The file cannot be written.
    """
    from composable_energy import __version__

    header = {
        "format": _FORMAT,
        "written_by": f"composable-energy {__version__}",
        "step": checkpoint.step,
        _METADATA: checkpoint.metadata,
    }
    header = json.loads(json.dumps(header))  # as it will be read
    header["digest"] = digest_of(checkpoint.tensors, header)
    data = tensors_bytes(checkpoint.tensors, {_KEY: json.dumps(header)})
    replace_file(path, data)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and checks its digest.

    Raises:
        DamagedCheckpoint: The file is not a checkpoint, or is damaged.
        FileFormatError: It has the format of another version.
    """
    try:
        header, tensors = parse_tensors(read_bytes(path), _KEY, path)
        version, writer = header["format"], header["written_by"]
    except (FileFormatError, KeyError) as error:
        raise DamagedCheckpoint(f"{path} is not a checkpoint, or is damaged ({error})") from None
    if version != _FORMAT:
        raise FileFormatError(
            f"{path} has format {version}, written by {writer}; this version reads {_FORMAT}: use that version, or give another folder."
        )
    digest, step, metadata = header.pop("digest", None), header.get("step"), header.get(_METADATA)
    if digest not in (digest_of(tensors, header), digest_of(tensors)):  # the second is that of earlier versions
        raise DamagedCheckpoint(f"{path} is damaged (its digest does not match)")
    if type(step) is not int or step < 0 or not isinstance(metadata, dict):
        raise DamagedCheckpoint(f"{path} is damaged (it has no number of steps or no settings)")
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
