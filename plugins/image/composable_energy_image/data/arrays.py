"""Readers of NumPy files: `.npy`, memory-mapped, and `.npz` with `images` and an array of labels for each attribute."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from composable_energy.errors import ComposableEnergyError, DtypeError, FileFormatError, OptionError, ShapeError
from composable_energy_image.data.labels import Labels, labels_from_numbers, labels_from_words
from composable_energy_image.data.pictures import CHANNELS, to_bytes
from composable_energy_image.data.source import PictureSource, ReadRequest, array_source, to_image
from composable_energy_viz.files import check_archive

if TYPE_CHECKING:
    from PIL import Image

_DSPRITES = ("color", "shape", "scale", "orientation", "x", "y")
_OTHER_PART = " (open that of another part by its own path)"


def read_npy(request: ReadRequest) -> PictureSource:
    """Reads an array of pictures without labels. Bytes are memory-mapped; numbers in [0, 1] are rounded to bytes."""
    request.check("an array of numpy", hint=_OTHER_PART)
    try:
        array = np.lib.format.open_memmap(request.path, mode="r")
    except Exception as error:  # NumPy does not document its errors for damaged files
        raise _damaged(request.path, error) from None
    return _source(request.path, "an array of numpy", array, {})


def read_npz(request: ReadRequest) -> PictureSource:
    """Reads an archive with `images`, or `imgs` as in dSprites, and labels by name into memory, because it may be compressed.

    An array of several columns is an attribute for each. A single Python object, such as `metadata`, is skipped and not unpickled.
    """
    path = request.path
    request.check("an archive of numpy", hint=_OTHER_PART)
    arrays = _read_archive(path)
    images = arrays.pop("images", arrays.pop("imgs", None))
    if images is None:
        raise FileFormatError(f"{path} has no array 'images', only {', '.join(arrays) or 'none'}: give the pictures this name.")
    if "latents_classes" in arrays:
        arrays.pop("latents_values", None)  # the same factors
    labels = {}
    for name, values in _columns(arrays).items():
        if values.shape != images.shape[:1]:
            raise ShapeError(f"{path}: {name!r} has shape {values.shape}, expected ({len(images)},), a label for each picture.")
        try:
            if values.dtype.kind == "U":
                labels[name] = labels_from_words(values.tolist())
            else:
                labels[name] = labels_from_numbers(torch.from_numpy(values.astype(values.dtype.newbyteorder("="))))
        except (TypeError, ValueError, ComposableEnergyError) as error:
            kind = type(error) if isinstance(error, ComposableEnergyError) else DtypeError
            raise kind(f"{path}, labels {name!r}: {error}") from None
    return _source(path, "an archive of numpy", images, labels)


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an archive but for single Python objects, such as the `metadata` of dSprites."""
    try:
        check_archive(path)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if not _is_object(path, name)}
    except FileFormatError:
        raise
    except Exception as error:  # NumPy does not document its errors for damaged files
        raise _damaged(path, error) from None
    odd = next((name for name, values in arrays.items() if not isinstance(values, np.ndarray)), None)
    if odd is not None:  # a file in the archive that is no array
        raise FileFormatError(f"{path} holds {odd!r}, which is no array of numpy: write it again without that.")
    return arrays


def _is_object(path: Path, name: str) -> bool:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
    return shape == () and kind.hasobject


def _columns(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits arrays of several columns into arrays with names of their own."""
    found = {}
    for name, values in arrays.items():
        if values.ndim == 2:
            known = _DSPRITES if name == "latents_classes" and values.shape[1] == len(_DSPRITES) else None
            found |= {known[i] if known else f"{name}_{i}": values[:, i] for i in range(values.shape[1])}
        else:
            found[name] = values
    return found


def _source(path: Path, description: str, array: np.ndarray, labels: dict[str, Labels]) -> PictureSource:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DtypeError(f"{path} has pictures in {array.dtype}, expected uint8, or floating numbers in [0, 1]: convert it.")
    if array.dtype == np.uint8 and all((picture <= 1).all() for picture in array):
        array = array * np.uint8(255)  # 0 and 1 are black and white
    pixels = _channels_first(path, array)
    if array.dtype == np.uint8:
        return array_source(description, path, pixels, [path], labels)

    def picture(row: int) -> Image.Image:
        try:
            return to_image(to_bytes(torch.from_numpy(pixels[row].astype(np.float32))))
        except OptionError as error:
            raise OptionError(f"{path}, picture {row}: {error}") from None

    return PictureSource(description, len(pixels), picture, lambda row: f"{path}, picture {row}", [path], labels)


def _channels_first(path: Path, array: np.ndarray) -> np.ndarray:
    if 0 not in array.shape:
        if array.ndim == 3 and array.shape[2] not in CHANNELS:  # else it is one picture
            return array[:, None]
        if array.ndim == 4 and array.shape[1] in CHANNELS:
            return array
        if array.ndim == 4 and array.shape[3] in CHANNELS:
            return array.transpose(0, 3, 1, 2)
    raise ShapeError(f"{path} has shape {array.shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels C.")


def _damaged(path: Path, error: Exception) -> FileFormatError:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return FileFormatError(
            f"{path} holds Python objects, which are never unpickled because that could run code: save plain numbers or words."
        )
    return FileFormatError(f"{path} cannot be read ({error}): it is damaged or truncated. Write it again.")
