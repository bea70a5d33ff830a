"""Many pictures in one file of bytes: CIFAR-10 and CIFAR-100 in their binary version, and the IDX files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from composable_energy.errors import FileFormatError
from composable_energy_image.data.attribute_table import text_of
from composable_energy_image.data.labels import Labels
from composable_energy_image.data.source import Request, Source, picture_of

__all__ = ["is_cifar10", "is_cifar100", "is_idx", "read_cifar10", "read_cifar100", "read_idx"]

_PARTS = ("train", "test")
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_IDX = {"train": "train", "test": "t10k"}


def is_cifar10(path: Path) -> bool:
    """Whether a folder holds CIFAR-10, in whichever version."""
    return (path / "batches.meta.txt").exists() or any(path.glob("data_batch_*")) or (path / "test_batch.bin").exists()


def is_cifar100(path: Path) -> bool:
    """Whether a folder holds CIFAR-100, in whichever version."""
    return (path / "fine_label_names.txt").exists() or all((path / name).exists() for name in ("meta", "train", "test"))


def read_cifar10(request: Request) -> Source:
    """CIFAR-10: records of one label and 3,072 bytes, in five files for training and one for tests.

    Raises:
        FileFormatError: A file is missing or cut off, or a label has no name.
    """
    names = ["test_batch.bin"] if request.part == "test" else [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _cifar(request, "CIFAR-10", names, {"class": "batches.meta.txt"})


def read_cifar100(request: Request) -> Source:
    """CIFAR-100: records of a superclass, a class and 3,072 bytes.

    Raises:
        FileFormatError: A file is missing or cut off, or a label has no name.
    """
    return _cifar(request, "CIFAR-100", [f"{request.part}.bin"], {"superclass": "coarse_label_names.txt", "class": "fine_label_names.txt"})


def is_idx(path: Path) -> bool:
    """Whether a folder holds pictures of MNIST's format."""
    return any(_idx_file(path, part, "images", 3) for part in _PARTS)


def read_idx(request: Request) -> Source:
    """IDX files, as of MNIST and Fashion-MNIST, plain or packed by gzip; the names of the classes are digits.

    Raises:
        FileFormatError: A file is missing, cut off or of another kind, or there are not as many labels as pictures.
    """
    told = "IDX files"
    request.without_labels(told)
    part = request.among(_PARTS, told)
    files = [_idx_file(request.path, part, "images", 3), _idx_file(request.path, part, "labels", 1)]
    for file, stem in zip(files, (f"{_IDX[part]}-images-idx3-ubyte", f"{_IDX[part]}-labels-idx1-ubyte"), strict=True):
        if file is None:
            raise FileFormatError(f"{request.path} lacks {stem}, plain or with .gz: put it there.")
    images, labels = (_idx(file, dimensions) for file, dimensions in zip(files, (3, 1), strict=True) if file is not None)
    if len(images) != len(labels):
        raise FileFormatError(
            f"{files[0]} has {len(images):,} pictures and {files[1]} {len(labels):,} labels: they do not belong together."
        )
    values = torch.from_numpy(labels.astype(np.int64))
    attribute = Labels(values, tuple(map(str, range(max(10, int(values.max()) + 1)))))
    return _source(f"{told}, part {part}", images[:, None], [file for file in files if file is not None], {"class": attribute})


def _cifar(request: Request, told: str, names: list[str], attributes: dict[str, str]) -> Source:
    request.without_labels(told)
    part = request.among(_PARTS, told)
    record = len(attributes) + _PIXELS
    batches, labels = [], {}
    for name in names:
        path = request.path / name
        if not path.exists():
            pickled = path.with_suffix("").exists()
            hint = "what is there is the pickled version, which could run code: take the binary one." if pickled else "unpack it again."
            raise FileFormatError(f"{path} is missing: {hint}")
        found = path.stat().st_size
        if found == 0 or found % record:
            raise FileFormatError(
                f"{path} is cut off: expected {record:,} bytes for each picture, found {found:,} bytes, "
                f"which are {found // record:,} pictures and {found % record:,} bytes. Fetch it again."
            )
        batches.append(np.memmap(path, np.uint8, "r").reshape(-1, record))
    for column, (attribute, listing) in enumerate(attributes.items()):
        words = tuple(line.strip() for line in text_of(request.path / listing).splitlines() if line.strip())
        for name, batch in zip(names, batches, strict=True):
            wrong = np.flatnonzero(batch[:, column] >= len(words))
            if len(wrong):
                value, row = int(batch[wrong[0], column]), int(wrong[0])
                raise FileFormatError(f"{request.path / name}, picture {row}: label {value}, but {listing} has {len(words)} names.")
        labels[attribute] = Labels(torch.from_numpy(np.concatenate([batch[:, column] for batch in batches]).astype(np.int64)), words)
    pixels = [batch[:, len(attributes) :].reshape(-1, 3, _SIDE, _SIDE) for batch in batches]
    return _source(f"{told}, part {part}", np.concatenate(pixels), [request.path / name for name in names], labels)


def _source(told: str, pixels: np.ndarray, files: list[Path], labels: dict[str, Labels]) -> Source:
    def name(row: int) -> str:
        return f"{told}, picture {row}"

    return Source(told, len(pixels), lambda row: picture_of(pixels[row]), name, files, labels, lambda: pixels, pixels.shape[1:])


def _idx_file(folder: Path, part: str, what: str, dimensions: int) -> Path | None:
    stems = [f"{_IDX[part]}-{what}{dot}idx{dimensions}-ubyte" for dot in "-."]
    return next((folder / name for stem in stems for name in (stem, f"{stem}.gz") if (folder / name).exists()), None)


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """The header is two bytes of 0, one of 8 for bytes, one for the number of dimensions, and each length in four bytes, highest first."""
    data = _unpacked(path) if path.suffix == ".gz" else np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    head = 4 * (dimensions + 1)
    if len(data) < head or bytes(data[:4]) != bytes((0, 0, 8, dimensions)):
        raise FileFormatError(
            f"{path} is no IDX file of bytes with {dimensions} dimensions, or is cut off: it begins with {bytes(data[:4])!r}."
        )
    shape = struct.unpack(f">{dimensions}I", bytes(data[4:head]))
    expected = head + int(np.prod(shape, dtype=np.int64))
    if len(data) != expected or 0 in shape:
        lengths = " x ".join(map(str, shape))
        raise FileFormatError(
            f"{path} is damaged or cut off: expected {expected:,} bytes for {lengths}, found {len(data):,}. Fetch it again."
        )
    return data[head:].reshape(shape)


def _unpacked(path: Path) -> np.ndarray:
    try:
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
    except (EOFError, OSError, zlib.error) as error:
        raise FileFormatError(f"{path} cannot be unpacked ({error}): it is damaged or cut off. Fetch it again.") from None
