"""Records: a JSON header and tensors in one safetensors file, written atomically, with a digest of both. Nothing in them is code.

Energies, checkpoints of sampling and of training, and models are records, told apart by their `kind`. Header and digest are in the metadata
of the file, under one key, so that equal records have equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composable_energy.errors import FileFormatError
from composable_energy.files.disk import is_file, read_bytes, replace_file

if TYPE_CHECKING:
    from torch import Tensor

ENERGY_FILE = "energy.safetensors"
"""The name of the record in the folder of a saved energy."""
_KEY = "composable_energy"


class DamagedFileError(FileFormatError):
    """A file is no record, or has changed since it was written."""


def digest_of(tensors: Mapping[str, Tensor], metadata: object = None) -> str:
    """Returns the hexadecimal digest of dense tensors, by names, dtypes, shapes and bits in any order, and of JSON data."""
    import torch

    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    if metadata is not None:
        whole.update(json.dumps(metadata, sort_keys=True).encode())
    return whole.hexdigest()


def write_record(path: Path, kind: str, version: int, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Replaces a file by a record of a kind, such as `energy`, and a version; after a crash it has its old or its new content.

    Raises:
        StorageError: The file cannot be written; its old content is intact.
        MemoryError: There is not enough memory.
        ValueError: A tensor has a type that cannot be written.
    """
    import safetensors.torch

    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    release = import_module("composable_energy").__version__  # `import composable_energy` would be an import upwards
    record = {"kind": kind, "version": version, "written_by": f"composable-energy {release}", "header": header}
    record = json.loads(json.dumps(record))  # as it will be read
    bytearray(3 * sum(tensor.numel() * tensor.element_size() for tensor in plain.values()))  # else safetensors would end the process
    replace_file(path, safetensors.torch.save(plain, {_KEY: json.dumps({**record, "digest": digest_of(plain, record)})}))


def read_record(path: Path, kind: str, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the header and the tensors of a record, which must be of a kind and a version.

    Raises:
        DamagedFileError: The file is no record, or has changed since it was written.
        FileFormatError: It cannot be read, or is of another kind or version.
    """
    import safetensors.torch

    data = read_bytes(path)
    try:
        _refuse_archive(data)
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        record = json.loads(metadata[_KEY], object_pairs_hook=_unique)
        if record.pop("digest") != digest_of(tensors, record):
            raise ValueError("it has changed since it was written")
        number, writer, header = record["version"], str(record["written_by"])[:100], dict(record["header"])
    except Exception as error:  # various errors of various damages
        raise DamagedFileError(f"{path} is damaged, or no record: {type(error).__name__}: {error}.") from error
    if record["kind"] != kind:
        raise FileFormatError(f"{path} holds {record['kind']!r}, expected {kind!r}.")
    if number != version:
        raise FileFormatError(
            f"{path} has version {number}, written by {writer!r}; this version of composable-energy reads {version}: use the version that "
            "wrote it."
        )
    return header, tensors


def is_saved(folder: Path) -> bool:
    """Returns whether a folder holds a saved energy."""
    return is_file(folder / ENERGY_FILE)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _refuse_archive(data: bytes) -> None:
    """Raises if a file is an archive at the same time: another reader would find other things in that."""
    end = data.rfind(b"PK\5\6", max(len(data) - 2**16 - 22, 0))  # the last part of an archive; before it, the list of its files
    size = int.from_bytes(data[end + 12 : end + 16], "little")
    if end >= 0 and (data.startswith(b"PK\1\2", max(end - size, 0)) or data.startswith(b"PK\6\7", max(end - 20, 0))):
        raise ValueError("it is a zip archive, too")
