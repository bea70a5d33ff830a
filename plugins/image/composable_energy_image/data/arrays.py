"""Arrays of numpy: `.npy`, mapped from the file, and `.npz` with `images` and an array of labels for each attribute."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from composable_energy.errors import ComposableEnergyError, DtypeError, FileFormatError, OptionError, ShapeError
from composable_energy_image.data.labels import Labels, labels_of_numbers, labels_of_words
from composable_energy_image.data.pictures import CHANNELS, to_bytes
from composable_energy_image.data.source import Request, Source, picture_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["is_npy", "is_npz", "read_npy", "read_npz"]

_IMAGES = "images"


def is_npy(path: Path) -> bool:
    """Whether a file has the ending of an array."""
    return path.is_file() and path.suffix.lower() == ".npy"


def is_npz(path: Path) -> bool:
    """Whether a file has the ending of an archive of arrays."""
    return path.is_file() and path.suffix.lower() == ".npz"


def read_npy(request: Request) -> Source:
    """An array of pictures without labels; bytes are mapped from the file, numbers in [0, 1] are rounded to bytes.

    Raises:
        FileFormatError: The file is damaged, or would have to be unpickled.
        ShapeError: Its shape is none of $(N, H, W)$, $(N, H, W, C)$ and $(N, C, H, W)$.
        DtypeError: Its numbers are neither bytes nor floating.
    """
    told = "an array of numpy"
    request.without_labels(told)
    request.among(("train",), f"{told} (open that of another part by its own path)")
    try:
        array = np.lib.format.open_memmap(request.path, mode="r")
    except Exception as error:  # which ones a damaged file raises, numpy does not say: its header is parsed as Python
        raise _damaged(request.path, error) from None
    return _source(request.path, told, array, {})


def read_npz(request: Request) -> Source:
    """An archive with `images` and labels by name; it is compressed or may be, so it is read into memory.

    Raises:
        FileFormatError: The file is damaged, has no `images`, or would have to be unpickled.
        ShapeError: A shape is no shape of pictures, or there are not as many labels as pictures.
        DtypeError: Pictures are neither bytes nor floating, or labels have fractions.
    """
    told = "an archive of numpy"
    request.without_labels(told)
    request.among(("train",), f"{told} (open that of another part by its own path)")
    try:
        if not zipfile.is_zipfile(request.path):
            raise zipfile.BadZipFile("it is no archive")
        with request.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # as above
        raise _damaged(request.path, error) from None
    if _IMAGES not in arrays:
        raise FileFormatError(f"{request.path} has no array {_IMAGES!r}, but {', '.join(arrays) or 'none'}: name the pictures so.")
    images = arrays.pop(_IMAGES)
    labels = {}
    for name, values in arrays.items():
        if values.shape != images.shape[:1]:
            raise ShapeError(f"{request.path}: {name!r} has shape {values.shape}, expected ({len(images)},), a label for each picture.")
        try:
            words = values.dtype.kind == "U"
            labels[name] = (
                labels_of_words(values.tolist())
                if words
                else labels_of_numbers(torch.from_numpy(values.astype(values.dtype.newbyteorder("="))))
            )
        except (TypeError, ComposableEnergyError) as error:
            kind = type(error) if isinstance(error, ComposableEnergyError) else DtypeError
            raise kind(f"{request.path}, labels {name!r}: {error}") from None
    return _source(request.path, told, images, labels)


def _source(path: Path, told: str, array: np.ndarray, labels: dict[str, Labels]) -> Source:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DtypeError(f"{path} has pictures in {array.dtype}, expected uint8, or floating numbers in [0, 1]: convert it.")
    pixels = _channels_first(path, array)

    def name(row: int) -> str:
        return f"{path}, picture {row}"

    if array.dtype == np.uint8:
        return Source(told, len(pixels), lambda row: picture_of(pixels[row]), name, [path], labels, lambda: pixels, pixels.shape[1:])

    def picture(row: int) -> Image.Image:
        try:
            return picture_of(to_bytes(torch.from_numpy(pixels[row].astype(np.float32))))
        except OptionError as error:
            raise OptionError(f"{name(row)}: {error}") from None

    return Source(told, len(pixels), picture, name, [path], labels)


def _channels_first(path: Path, array: np.ndarray) -> np.ndarray:
    if 0 not in array.shape:
        if array.ndim == 3:
            return array[:, None]
        if array.ndim == 4 and array.shape[1] in CHANNELS:
            return array
        if array.ndim == 4 and array.shape[3] in CHANNELS:
            return array.transpose(0, 3, 1, 2)
    raise ShapeError(f"{path} has shape {array.shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels C.")


def _damaged(path: Path, error: Exception) -> FileFormatError:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return FileFormatError(
            f"{path} holds Python objects, which are never unpickled as that could run code: save plain numbers or words."
        )
    return FileFormatError(f"{path} cannot be read ({error}): it is damaged or cut off. Write it again.")
