"""Readers of arrays: NumPy files, memory-mapped or with labels, the binary versions of CIFAR-10 and CIFAR-100, and IDX files (MNIST)."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from composable_energy.errors import ComposableEnergyError, DtypeError, FileFormatError, OptionError, ShapeError
from composable_energy_image.data.folders import read_labels
from composable_energy_image.data.pictures import CHANNELS, Labels, labels_from_numbers, labels_from_words, to_bytes
from composable_energy_image.data.source import PictureSource, ReadRequest, array_source, read_text, to_image
from composable_energy_viz.files import LARGEST_PICTURE, check_archive, read_gzip

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
    """Reads an archive with `images`, or `imgs` as in dSprites, and labels by name into memory, because it may be compressed. An array of
    several columns is an attribute for each. A single Python object, such as `metadata`, is skipped and not unpickled."""
    path = request.path
    request.check("an archive of numpy", hint=_OTHER_PART)
    arrays = _read_archive(path)
    if (images := arrays.pop("images", arrays.pop("imgs", None))) is None:
        raise FileFormatError(f"{path} has no array 'images', only {', '.join(arrays) or 'none'}: give the pictures this name.")
    if "latents_classes" in arrays:
        arrays.pop("latents_values", None)  # the same factors
    labels = {}
    for name, values in _columns(path, arrays).items():
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
    if (odd := next((name for name, values in arrays.items() if not isinstance(values, np.ndarray)), None)) is not None:
        raise FileFormatError(f"{path} holds {odd!r}, which is no array of numpy: write it again without that.")
    return arrays


def _is_object(path: Path, name: str) -> bool:
    with zipfile.ZipFile(path) as archive, archive.open(name if name in archive.namelist() else f"{name}.npy") as file:
        if file.peek(1)[:1] != b"\x93":  # no array  # pyright: ignore[reportAttributeAccessIssue]
            return False
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
    return shape == () and kind.hasobject


def _columns(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits arrays of several columns into arrays with names of their own."""
    found = {}
    for name, values in arrays.items():
        split = {name: values}
        if values.ndim == 2:
            known = _DSPRITES if name == "latents_classes" and values.shape[1] == len(_DSPRITES) else None
            split = {known[i] if known else f"{name}_{i}": values[:, i] for i in range(values.shape[1])}
        if twice := found.keys() & split.keys():
            raise FileFormatError(f"{path} has two arrays of labels named {min(twice)!r}, one a column of several: rename one.")
        found |= split
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
        return FileFormatError(f"{path} holds Python objects, never unpickled since that could run code: save plain numbers or words.")
    return FileFormatError(f"{path} cannot be read ({error}): it is damaged or truncated. Write it again.")


_PARTS = ("train", "test")
_PIXELS = 3 * 32 * 32
_IDX = {"train": "train", "test": "t10k"}


def is_cifar10(path: Path) -> bool:
    """Returns whether a folder holds CIFAR-10, in any version."""
    return (path / "batches.meta.txt").exists() or any(path.glob("data_batch_*")) or (path / "test_batch.bin").exists()


def is_cifar100(path: Path) -> bool:
    """Returns whether a folder holds CIFAR-100, in any version."""
    return (path / "fine_label_names.txt").exists() or all((path / name).exists() for name in ("meta", "train", "test"))


def is_idx(path: Path) -> bool:
    """Returns whether a folder holds pictures in the format of MNIST."""
    return any(_find_idx_file(path, part, "images", 3) for part in _PARTS)


def read_cifar10(request: ReadRequest) -> PictureSource:
    """Reads CIFAR-10: records of one label and 3,072 bytes, in five files for training and one for testing."""
    names = ["test_batch.bin"] if request.part == "test" else [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _read_cifar(request, "CIFAR-10", names, {"class": "batches.meta.txt"})


def read_cifar100(request: ReadRequest) -> PictureSource:
    """Reads CIFAR-100: records of a superclass, a class and 3,072 bytes."""
    listings = {"superclass": "coarse_label_names.txt", "class": "fine_label_names.txt"}
    return _read_cifar(request, "CIFAR-100", [f"{request.part}.bin"], listings)


def _read_cifar(request: ReadRequest, description: str, names: list[str], listings: dict[str, str]) -> PictureSource:
    part, record = request.check(description, _PARTS), len(listings) + _PIXELS
    files = [request.path / name for name in names]
    batches = [_read_records(file, record) for file in files]
    labels = {}
    for column, (attribute, listing) in enumerate(listings.items()):
        words = tuple(line.strip() for line in read_text(request.path / listing).splitlines() if line.strip())
        for file, batch in zip(files, batches, strict=True):
            if len(wrong := np.flatnonzero(batch[:, column] >= len(words))):
                value = int(batch[wrong[0], column])
                raise FileFormatError(f"{file}, picture {wrong[0]}: label {value}, but {listing} has {len(words)} names.")
        labels[attribute] = Labels(torch.from_numpy(np.concatenate([batch[:, column] for batch in batches]).astype(np.int64)), words)
    pixels = np.concatenate([batch[:, len(listings) :] for batch in batches]).reshape(-1, 3, 32, 32)
    description = f"{description}, part {part}"
    return array_source(description, description, pixels, files, labels)


def _read_records(path: Path, record: int) -> np.ndarray:
    if not path.is_file():
        pickled = path.with_suffix("").exists()
        hint = "the pickled version there could run code: use the binary version." if pickled else "unpack the archive again."
        raise FileFormatError(f"{path} is missing: {hint}")
    if (found := path.stat().st_size) == 0 or found % record:
        raise FileFormatError(
            f"{path} is truncated: expected {record:,} bytes for each picture, found {found:,} bytes, "
            f"which are {found // record:,} pictures and {found % record:,} bytes. Download it again."
        )
    return np.memmap(path, np.uint8, "r").reshape(-1, record)


def read_idx(request: ReadRequest) -> PictureSource:
    """Reads IDX files, as of (Fashion-)MNIST, plain or gzipped; classes are digits. Tables of labels begin with picture numbers, from 0."""
    part, files, shapes = request.check("IDX files", _PARTS, own_labels=False), [], []
    for what, dimensions in (("images", 3), ("labels", 1)):
        if (file := _find_idx_file(request.path, part, what, dimensions)) is None:
            raise FileFormatError(f"{request.path} lacks {_IDX[part]}-{what}-idx{dimensions}-ubyte, plain or with .gz: put it there.")
        files.append(file)
        shapes.append(_read_idx_shape(file, dimensions))
    if shapes[0][0] != shapes[1][0]:  # compared before the pixels are unpacked
        raise FileFormatError(f"{files[0]} has {shapes[0][0]:,} pictures, {files[1]} {shapes[1][0]:,} labels: they are of two data sets.")
    images, numbers = map(_read_idx_values, files, shapes)
    values = torch.from_numpy(numbers.astype(np.int64))
    labels = {"class": Labels(values, tuple(map(str, range(max(10, int(values.max()) + 1)))))}
    if request.labels is not None:
        labels = read_labels(request.labels, list(map(str, range(len(values)))), request.path, request.strict)
    description = f"IDX files, part {part}"
    return array_source(description, description, images[:, None], files, labels)


def _find_idx_file(folder: Path, part: str, what: str, dimensions: int) -> Path | None:
    stems = [f"{_IDX[part]}-{what}{dot}idx{dimensions}-ubyte" for dot in "-."]
    return next((folder / name for stem in stems for name in (stem, f"{stem}.gz") if (folder / name).is_file()), None)


def _read_idx_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """Reads the header of an IDX file: two bytes 0, one byte 8, the number of dimensions, and each length in four bytes, big-endian."""
    head = 4 * (dimensions + 1)
    begin = _read(path, head)
    if len(begin) < head or bytes(begin[:4]) != bytes((0, 0, 8, dimensions)):
        raise FileFormatError(f"{path} is no IDX file of bytes with {dimensions} dimensions, or is truncated: {bytes(begin[:4])!r}.")
    shape = struct.unpack(f">{dimensions}I", bytes(begin[4:head]))
    if math.prod(shape[1:]) > LARGEST_PICTURE:
        raise FileFormatError(f"{path} has pictures of {shape[1]:,} x {shape[2]:,} pixels, and {LARGEST_PICTURE:,} at most are read.")
    return shape


def _read_idx_values(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    head = 4 * (len(shape) + 1)
    expected = head + math.prod(shape)
    data = _read(path, expected + 1)  # one more shows that the header is not right
    if len(data) != expected or 0 in shape:
        lengths, more = " x ".join(map(str, shape)), "more" if len(data) > expected else f"{len(data):,}"
        raise FileFormatError(f"{path} is damaged or truncated: expected {expected:,} bytes for {lengths}, got {more}. Download it again.")
    return data[head:].reshape(shape)


def _read(path: Path, most: int) -> np.ndarray:
    """Returns up to a number of bytes of a file; of a plain file all, which are not read into memory."""
    if path.suffix == ".gz":
        return np.frombuffer(read_gzip(path, most), np.uint8)
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
