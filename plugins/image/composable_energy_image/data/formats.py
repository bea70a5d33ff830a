"""`open_pictures`: opens pictures and labels in any supported format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import expanded, is_directory, is_file
from composable_energy.options import check_integer
from composable_energy_image.data.arrays import is_npy, is_npz, read_npy, read_npz
from composable_energy_image.data.cache import read_cached, write_cached
from composable_energy_image.data.cifar_mnist import is_cifar10, is_cifar100, is_idx, read_cifar10, read_cifar100, read_idx
from composable_energy_image.data.folders import is_celeba, is_folder, read_celeba, read_folder
from composable_energy_image.data.pictures import CHANNELS, Pictures
from composable_energy_image.data.rendered import is_rendered, read_rendered
from composable_energy_image.data.source import ENDINGS, PictureSource, ReadRequest, decode_pictures


@dataclass(frozen=True)
class _Format:
    matches: Callable[[Path], bool]
    read: Callable[[ReadRequest], PictureSource]


# In the order of detection: an image folder is any folder of pictures without another format.
_FORMATS = {
    "npy": _Format(is_npy, read_npy),
    "npz": _Format(is_npz, read_npz),
    "celeba": _Format(is_celeba, read_celeba),
    "cifar10": _Format(is_cifar10, read_cifar10),
    "cifar100": _Format(is_cifar100, read_cifar100),
    "idx": _Format(is_idx, read_idx),
    "rendered": _Format(is_rendered, read_rendered),
    "folder": _Format(is_folder, read_folder),
}


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
        labels: For an image folder, a CSV file of attributes. None takes the only CSV file of the folder, if there is one.
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
    source = _find_format(where, format).read(ReadRequest(where, part, table, strict, progress))
    long = next((text for name, some in source.labels.items() for text in (name, *some.names) if len(text.encode()) > _LONGEST), None)
    if long is not None:  # names of attributes and values become names of folders at the end of a training
        raise FileFormatError(f"{where} has the name {long[:40]!r}... of {len(long)} characters: at most {_LONGEST} bytes are possible.")
    count = source.count if limit is None else min(limit, source.count)
    rows = [index * source.count // count for index in range(count)]
    pixels, subset = _read_pixels(source, rows, size, channels, None if cache is None else expanded(cache), progress)
    index = torch.tensor(rows)
    found = {name: some if count == source.count else some.take(index) for name, some in source.labels.items()}
    return Pictures(pixels, found, f"{source.description} at {where}", index if subset else None)


_LONGEST = 100


def _find_format(path: Path, format: str | None) -> _Format:
    if format is not None and format not in _FORMATS:
        near = get_close_matches(format, _FORMATS, n=1)
        raise OptionError(f"format must be one of {', '.join(_FORMATS)}, got {format!r}{f'; did you mean {near[0]!r}?' if near else '.'}")
    if not (is_file(path) or is_directory(path)):
        raise FileFormatError(f"{path} does not exist: give the path of a folder of pictures, or of a .npy or .npz file.")
    if format is not None:
        return _FORMATS[format]
    found = next((form for form in _FORMATS.values() if form.matches(path)), None)
    if found is not None:
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
    if source.array is not None and size in (None, *_square_side(source.shape)) and channels in (None, source.shape[0]):
        array = source.array()
        if cache is None or isinstance(array, np.memmap):
            return array, len(rows) < source.count
    if cache is None:
        pictures = decode_pictures(source, rows, size, channels, progress)
        first = next(pictures)
        pixels = np.empty((len(rows), *first.shape), np.uint8)
        pixels[0] = first
        for row, picture in enumerate(pictures, 1):
            pixels[row] = picture
        return pixels, False
    settings = {"source": source.description, "size": size, "channels": channels, "pictures": len(rows)}
    file, pixels = read_cached(cache, source.files, settings)
    if pixels is None or len(pixels) != len(rows):
        pixels = write_cached(file, len(rows), decode_pictures(source, rows, size, channels, progress))
    return pixels, False


def _square_side(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the side of square pictures, and nothing for others."""
    return shape[1:2] if shape[1] == shape[2] else ()
