"""Files of version 0.1 as records of now. To end their support, delete this file and its three uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from composable_energy.errors import FileFormatError
from composable_energy.files.disk import read_bytes

OLD_ENERGY = "config.json"
"""The name of the JSON file of a saved energy."""
_LARGEST = 64 * 2**20  # bytes of a JSON file


def read_pair(config: Path, tensors: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the data of a JSON file, and the tensors of the file beside it: a saved energy, or a COMET model.

    Args:
        config: The JSON file, with the SHA-256 of the file of tensors, and perhaps its own checksum and the name of that file.
        tensors: The name of the file of tensors, if the JSON file gives none.

    Raises:
        FileFormatError: A file is missing or has changed since it was written.
    """
    import safetensors.torch

    text = read_bytes(config, _LARGEST)
    try:
        body = dict(json.loads(text))
        checksum, name = body.pop("checksum", None), body.get("tensors_file", tensors)
        if checksum is not None and checksum != hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest():
            raise ValueError("it has changed since it was written")
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"it names the file of tensors {name!r}")
        data = read_bytes(config.with_name(name))
        if hashlib.sha256(data).hexdigest() != body.pop("tensors_sha256", None):
            raise ValueError(f"{name} is not the file that it was written with")
        body.pop("tensors_file", None)
        return body, safetensors.torch.load(data)
    except Exception as error:
        raise FileFormatError(f"{config} cannot be read: {type(error).__name__}: {error}") from error


def upgraded(metadata: Mapping[str, str], tensors: Mapping[str, Any], digest_of: Callable[..., str]) -> dict[str, Any] | None:
    """Returns the record in the metadata of an old checkpoint; None if it is none.

    Raises:
        ValueError: It has changed since it was written.
    """
    for key, kind in (("composable_energy_checkpoint", "checkpoint"), ("composable_energy_training", "training")):
        if key in metadata:
            header = json.loads(metadata[key])
            if header.pop("digest") != digest_of(tensors, header):
                raise ValueError("its digest is another")
            header["metadata"] = header.pop("told", None)
            return {"kind": kind, "version": header.pop("format"), "written_by": header.pop("written_by", "version 0.1"), "header": header}
    return None
