"""Decoded pictures in a file of bytes that is mapped, not read; it is used again while the originals and the settings stay the same."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from composable_energy.errors import StorageError

__all__ = ["kept", "write"]

_FORMAT = 1


def kept(folder: Path, files: Sequence[Path], settings: Mapping[str, Any]) -> tuple[Path, np.ndarray | None]:
    """Returns the file that belongs to some originals and settings, and its pictures; None if it is not there or damaged.

    Args:
        folder: Where such files are.
        files: The originals, whose paths, sizes and times count.
        settings: What else counts, as plain data.
    """
    digest = blake2b(json.dumps([_FORMAT, settings]).encode(), digest_size=12)
    for file in files:
        about = file.stat()
        digest.update(json.dumps([str(file.absolute()), about.st_size, about.st_mtime_ns]).encode())
    path = folder / f"pictures-{digest.hexdigest()}.npy"
    try:
        return path, np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # none is there, or a damaged one
        return path, None


def write(path: Path, count: int, pictures: Iterator[np.ndarray]) -> np.ndarray:
    """Writes pictures one after the other and returns them mapped; a file that is there is whole, whatever happens meanwhile.

    Several processes may write the same file at once; the last one replaces what is equal.

    Args:
        path: Of the file; its folder is made.
        count: How many there will be.
        pictures: Bytes of shape $(C, H, W)$.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """
    first = next(pictures)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
    fresh = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written as a file and mapped when whole: a map that meets a full disk kills the process.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".pictures-", suffix=".new", delete=False) as file:
            fresh = Path(file.name)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(first.tobytes())
            for picture in pictures:
                file.write(picture.tobytes())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}): free some space, or give another folder as cache.") from None
    finally:
        if fresh is not None:
            fresh.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r", allow_pickle=False)
