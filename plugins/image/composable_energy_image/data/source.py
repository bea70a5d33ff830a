"""The interface between readers of formats and `open_pictures`, and the decoding of pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from composable_energy.errors import FileFormatError, OptionError, ShapeError
from composable_energy.files import read_bytes
from composable_energy.options import printable
from composable_energy_image.data.pictures import Labels
from composable_energy_viz.files import MODES, fitted

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_AHEAD = 256  # pictures decoded in parallel before the first is used


@dataclass(frozen=True)
class ReadRequest:
    """The arguments of a reader: path, part of the data set, table of labels, and whether the table must match the files."""

    path: Path
    part: str = "train"
    labels: Path | None = None
    strict: bool = True
    progress: bool = False

    def check(self, description: str, parts: Sequence[str] = ("train",), *, hint: str = "", own_labels: bool = True) -> str:
        """Returns the part; raises if it does not exist, or if a table of labels is given for a format with its own labels."""
        if own_labels and self.labels is not None:
            raise OptionError(f"labels= applies to image folders; {self.path} is {description}, which holds its own labels.")
        if self.part not in parts:
            raise OptionError(f"{self.path} is {description}{hint}, which has the parts {', '.join(parts)}, got part={self.part!r}.")
        return self.part


@dataclass(frozen=True)
class PictureSource:
    """Pictures that can be read one by one."""

    description: str  # the format, in words
    count: int
    picture: Callable[[int], Image.Image]  # by index, with mode L or RGB
    name: Callable[[int], str]  # by index, for errors
    files: Sequence[Path]  # a cache is valid while their names, sizes and modification times stay the same
    labels: dict[str, Labels]
    array: np.ndarray | None = None  # all pictures as bytes of shape (N, C, H, W), if the files store them so


def array_source(
    description: str, where: str | Path, pixels: np.ndarray, files: Sequence[Path], labels: dict[str, Labels]
) -> PictureSource:
    """Returns the source of pictures that are stored as bytes, with shape $(N, C, H, W)$."""
    picture, name = (lambda row: to_image(pixels[row])), (lambda row: f"{where}, picture {row}")
    return PictureSource(description, len(pixels), picture, name, files, labels, pixels)


def join_names(names: Sequence[str], most: int = 3) -> str:
    """Returns the first names, and the number of the others, as text."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is not text in UTF-8: save it as CSV in UTF-8.") from None


def to_image(pixels: np.ndarray) -> Image.Image:
    """Returns bytes of shape $(C, H, W)$ as an image."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def decode_pictures(
    source: PictureSource, rows: Sequence[int], size: int | None, channels: int | None, progress: bool
) -> Iterator[np.ndarray]:
    """Yields pictures by index as bytes, all of one shape $(C, H, W)$; by default with the files' size and the first one's channels."""
    first: tuple[str, tuple[int, int], int] | None = None
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(rows), desc=printable(source.description), disable=not progress) as bar,
    ):
        for start in range(0, len(rows), _AHEAD):
            some = rows[start : start + _AHEAD]
            decoded = pool.map(lambda row: fitted(source.picture(row), size, size) if size else source.picture(row), some)
            for row, picture in zip(some, decoded, strict=True):
                name = source.name(row)
                found = len(picture.getbands())
                first = first or (name, picture.size, channels or found)
                if picture.size != first[1]:
                    raise ShapeError(
                        f"{first[0]} has {' x '.join(map(str, first[1]))} pixels and {name} {' x '.join(map(str, picture.size))}: "
                        "give size= to make all of them squares of one size."
                    )
                if channels is None and found > first[2]:
                    raise ShapeError(f"{first[0]} is grey and {name} is in color: give channels=1 or channels=3.")
                pixels = np.asarray(picture if found == first[2] else picture.convert(MODES[first[2]]))
                yield pixels[None] if first[2] == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
                bar.update()
