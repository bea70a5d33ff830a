"""A cache of decoded pictures: a memory-mapped file of bytes, valid while the original files and the settings stay the same."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from composable_energy.errors import FileFormatError, StorageError

_FORMAT = 1


def cached_pictures(
    folder: Path, files: Sequence[Path], settings: Mapping[str, Any], count: int, decode: Callable[[], Iterator[np.ndarray]]
) -> np.ndarray:
    """Returns pictures as bytes, memory-mapped from a file of the cache, which is written if it is missing or damaged.

    The key of the file is the settings, and the paths, sizes and modification times of the originals. Several processes may write the same
    file at once; their contents are equal, and the last one wins.
    """
    digest = blake2b(json.dumps([_FORMAT, settings]).encode(), digest_size=12)
    for file in files:
        try:
            status = file.stat()
        except OSError as error:  # a link that leads nowhere
            raise FileFormatError(f"{file} cannot be read ({error.strerror}): replace or delete it.") from None
        digest.update(json.dumps([str(file.absolute()), status.st_size, status.st_mtime_ns]).encode())
    path = folder / f"pictures-{digest.hexdigest()}.npy"
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(found) == count:
            return found
    except Exception:  # missing or damaged
        pass
    _write(path, count, decode())
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _write(path: Path, count: int, pictures: Iterator[np.ndarray]) -> None:
    """Writes pictures to a file atomically."""
    first, fresh = next(pictures), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written as a file and mapped when complete: a full disk under a writable map kills the process.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".pictures-", suffix=".new", delete=False) as file:
            fresh = Path(file.name)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)})
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
