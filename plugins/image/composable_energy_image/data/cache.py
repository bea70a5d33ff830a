"""A cache of decoded pictures: a memory-mapped file of bytes, valid while the original files and the settings stay the same."""

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

_FORMAT = 1


def read_cached(folder: Path, files: Sequence[Path], settings: Mapping[str, Any]) -> tuple[Path, np.ndarray | None]:
    """Returns the path of the cache file for some originals and settings, and its pictures; None if it is missing or damaged.

    Args:
        folder: The folder of the cache.
        files: The originals; their paths, sizes and modification times are part of the key.
        settings: Other parts of the key, as plain data.
    """
    digest = blake2b(json.dumps([_FORMAT, settings]).encode(), digest_size=12)
    for file in files:
        status = file.stat()
        digest.update(json.dumps([str(file.absolute()), status.st_size, status.st_mtime_ns]).encode())
    path = folder / f"pictures-{digest.hexdigest()}.npy"
    try:
        return path, np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # missing or damaged
        return path, None


def write_cached(path: Path, count: int, pictures: Iterator[np.ndarray]) -> np.ndarray:
    """Writes pictures to a file atomically, and returns them memory-mapped.

    Several processes may write the same file at once; their contents are equal, and the last one wins.

    Args:
        path: The file; its folder is created.
        count: Number of pictures.
        pictures: Pictures as bytes, with shape $(C, H, W)$.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """
    first = next(pictures)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
    fresh = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written as a file and mapped when complete: a full disk under a writable map kills the process.
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
