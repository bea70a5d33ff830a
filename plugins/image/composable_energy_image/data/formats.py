"""`open_pictures`: opens pictures and labels in any supported format, and keeps decoded pictures in a cache."""

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from composable_energy.errors import FileFormatError, OptionError, StorageError
from composable_energy.files import expanded, is_directory, is_file
from composable_energy.options import check_choice, check_integer
from composable_energy_image.data.arrays import is_cifar10, is_cifar100, is_idx, read_cifar10, read_cifar100, read_idx, read_npy, read_npz
from composable_energy_image.data.folders import is_celeba, is_folder, read_celeba, read_folder
from composable_energy_image.data.pictures import CHANNELS, Pictures
from composable_energy_image.data.scene_files import is_rendered, read_rendered
from composable_energy_image.data.source import ENDINGS, PictureSource, ReadRequest, decode_pictures

# Whether a path has the format, and its reader, in the order of detection: an image folder has no other format.
_FORMATS: dict[str, tuple[Callable[[Path], bool], Callable[[ReadRequest], PictureSource]]] = {
    "npy": (lambda path: is_file(path) and path.suffix.lower() == ".npy", read_npy),
    "npz": (lambda path: is_file(path) and path.suffix.lower() == ".npz", read_npz),
    "celeba": (is_celeba, read_celeba),
    "cifar10": (is_cifar10, read_cifar10),
    "cifar100": (is_cifar100, read_cifar100),
    "idx": (is_idx, read_idx),
    "rendered": (is_rendered, read_rendered),
    "folder": (is_folder, read_folder),
}
_LONGEST = 100


def open_pictures(
    path: str | Path,
    *,
    size: int | None = None,
    channels: int | None = None,
    labels: str | Path | None = None,
    part: str = "train",
    cache: str | Path | None = None,
    limit: int | None = None,
    progress: bool = False,
    format: str | None = None,
    strict: bool = True,
) -> Pictures:
    """Opens pictures in any supported format; the page "Your own pictures" shows each.

    Files that hold bytes of the requested size are memory-mapped. Otherwise pictures are decoded once to bytes: into memory, or with
    `cache` into a memory-mapped file, which is reused while the original files and the settings stay the same.

    Args:
        path: A folder, or a file that ends in `.npy` or `.npz`.
        size: Height and width in pixels: the shorter side is resized (Lanczos), then the picture is cropped at the centre. None keeps the
            size of the files, which must be the same for all.
        channels: 1 for grey, 3 for color. None takes the channels of the first picture, and converts later grey pictures to color.
        labels: For an image folder or IDX files, a CSV file of attributes; IDX pictures are named by their number, from 0. None takes the
            only CSV file of an image folder, if there is one, and the classes of IDX files.
        part: The part of a data set with parts: `"train"`, `"test"`, and for CelebA `"valid"`.
        cache: A folder for decoded pictures.
        limit: The largest number of pictures. They are spread evenly, so that every class of a sorted folder is included.
        progress: Whether to show progress bars while listing and decoding.
        format: `"folder"`, `"celeba"`, `"cifar10"`, `"cifar100"`, `"idx"`, `"rendered"`, `"npy"` or `"npz"`; None detects it.
        strict: Whether a table of attributes and the files must list the same pictures. If not, pictures without a line have unknown
            labels, and lines without a picture are ignored.

    Returns:
        The pictures. Their `origin` describes the format and path.

    Raises:
        FileFormatError: The path does not exist, or a file is damaged, truncated or does not match the others; it is named.
        OptionError: An option is out of range, or does not apply to the format.
        ShapeError: Pictures differ in size and `size` is not given.
        DtypeError: An array holds neither bytes nor floating numbers.
        StorageError: The cache cannot be written.
    """
    for option, value in (("size", size), ("limit", limit)):
        if value is not None:
            check_integer(option, value)
    if channels not in (None, *CHANNELS):
        raise OptionError(f"channels must be 1 (grey), 3 (color), or None for those of the first picture, got {channels!r}.")
    where = expanded(path)
    table = None if labels is None else expanded(labels)
    source = _find_reader(where, format)(ReadRequest(where, part, table, strict, progress))
    long = next((text for name, some in source.labels.items() for text in (name, *some.names) if len(text.encode()) > _LONGEST), None)
    if long is not None:  # names of attributes and values become names of folders at the end of a training
        raise FileFormatError(f"{where} has the name {long[:40]!r}... of {len(long)} characters: at most {_LONGEST} bytes are possible.")
    count = source.count if limit is None else min(limit, source.count)
    rows = [index * source.count // count for index in range(count)]
    pixels, subset = _read_pixels(source, rows, size, channels, None if cache is None else expanded(cache), progress)
    index = torch.tensor(rows)
    found = {name: some if count == source.count else some.take(index) for name, some in source.labels.items()}
    return Pictures(pixels, found, f"{source.description} at {where}", index if subset else None)


def _find_reader(path: Path, format: str | None) -> Callable[[ReadRequest], PictureSource]:
    if format is not None:
        check_choice("format", format, list(_FORMATS))
    if not (is_file(path) or is_directory(path)):
        raise FileFormatError(f"{path} does not exist: give the path of a folder of pictures, or of a .npy or .npz file.")
    if format is not None:
        return _FORMATS[format][1]
    if (found := next((reader for matches, reader in _FORMATS.values() if matches(path)), None)) is not None:
        return found
    if is_file(path):
        raise FileFormatError(f"{path} is neither .npy nor .npz: give the folder of the pictures; unpack archives first.")
    raise FileFormatError(
        f"{path} holds no pictures of a known format: expected files that end in {', '.join(ENDINGS)} at any depth, or those of "
        "CelebA, CIFAR (binary version) or MNIST as they are unpacked; give the path of a .npy or .npz file itself."
    )


def _read_pixels(
    source: PictureSource, rows: list[int], size: int | None, channels: int | None, cache: Path | None, progress: bool
) -> tuple[np.ndarray, bool]:
    """Returns the bytes, and whether they hold all pictures, so that rows must still be selected."""
    array = source.array
    fits = array is not None and channels in (None, array.shape[1]) and (size is None or array.shape[2:] == (size, size))
    if array is not None and fits and (cache is None or isinstance(array, np.memmap)):
        return array, len(rows) < source.count
    decode = partial(decode_pictures, source, rows, size, channels, progress)
    if cache is not None:
        settings = {"source": source.description, "size": size, "channels": channels, "pictures": len(rows)}
        return cached_pictures(cache, source.files, settings, len(rows), decode), False
    pictures = decode()
    first = next(pictures)
    pixels = np.empty((len(rows), *first.shape), np.uint8)
    for row, picture in enumerate(itertools.chain([first], pictures)):
        pixels[row] = picture
    return pixels, False


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
        if len(found := np.load(path, mmap_mode="r", allow_pickle=False)) == count:
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
