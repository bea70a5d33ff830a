"""Readers of packed data sets: the binary versions of CIFAR-10 and CIFAR-100, and the IDX files of MNIST and Fashion-MNIST."""

import math
import struct
from pathlib import Path

import numpy as np
import torch

from composable_energy.errors import FileFormatError
from composable_energy_image.data.folders import read_labels
from composable_energy_image.data.labels import Labels
from composable_energy_image.data.source import PictureSource, ReadRequest, array_source, read_text
from composable_energy_viz.files import LARGEST_PICTURE, read_gzip

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
            wrong = np.flatnonzero(batch[:, column] >= len(words))
            if len(wrong):
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
    found = path.stat().st_size
    if found == 0 or found % record:
        raise FileFormatError(
            f"{path} is truncated: expected {record:,} bytes for each picture, found {found:,} bytes, "
            f"which are {found // record:,} pictures and {found % record:,} bytes. Download it again."
        )
    return np.memmap(path, np.uint8, "r").reshape(-1, record)


def read_idx(request: ReadRequest) -> PictureSource:
    """Reads IDX files, as of MNIST and Fashion-MNIST, plain or compressed by gzip; the names of the classes are digits.

    In a table of labels the first column has the numbers of the pictures, from 0.
    """
    part, files, shapes = request.check("IDX files", _PARTS, own_labels=False), [], []
    for what, dimensions in (("images", 3), ("labels", 1)):
        file = _find_idx_file(request.path, part, what, dimensions)
        if file is None:
            raise FileFormatError(f"{request.path} lacks {_IDX[part]}-{what}-idx{dimensions}-ubyte, plain or with .gz: put it there.")
        files.append(file)
        shapes.append(_read_idx_shape(file, dimensions))
    if shapes[0][0] != shapes[1][0]:  # compared before the pixels are unpacked
        raise FileFormatError(
            f"{files[0]} has {shapes[0][0]:,} pictures and {files[1]} {shapes[1][0]:,} labels: they belong to different data sets."
        )
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
        raise FileFormatError(
            f"{path} is not an IDX file of bytes with {dimensions} dimensions, or is truncated: it starts with {bytes(begin[:4])!r}."
        )
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
        raise FileFormatError(
            f"{path} is damaged or truncated: expected {expected:,} bytes for {lengths}, found {more}. Download it again."
        )
    return data[head:].reshape(shape)


def _read(path: Path, most: int) -> np.ndarray:
    """Returns up to a number of bytes of a file; of a plain file all, which are not read into memory."""
    if path.suffix == ".gz":
        return np.frombuffer(read_gzip(path, most), np.uint8)
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
