"""What a reader of a format finds, before any picture is decoded; and the decoding, which is the same for all formats."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from composable_energy.errors import FileFormatError, OptionError, ShapeError
from composable_energy_image.data.labels import Labels

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ENDINGS", "Request", "Source", "decoded", "named", "opened", "picture_of"]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MODES = {1: "L", 3: "RGB"}
_AHEAD = 256  # pictures that are decoded side by side, before any is used


@dataclass(frozen=True)
class Request:
    """What was asked of a reader: the path, the part of the data, the table of labels and whether it must agree with the files."""

    path: Path
    part: str = "train"
    labels: Path | None = None
    strict: bool = True
    progress: bool = False

    def without_labels(self, told: str) -> None:
        """Raises if a table of labels was given to a format that has its own."""
        if self.labels is not None:
            raise OptionError(f"labels= goes with an image folder; {self.path} is {told}, which has its labels in itself.")

    def among(self, parts: Sequence[str], told: str) -> str:
        """Returns the part, and raises if there is none of that name."""
        if self.part not in parts:
            raise OptionError(f"{self.path} is {told}, which has the parts {', '.join(parts)}, got part={self.part!r}.")
        return self.part


@dataclass(frozen=True)
class Source:
    """Pictures that can be read one by one.

    Attributes:
        told: The format, in words.
        count: How many pictures there are.
        picture: Returns one by its index, with mode L or RGB.
        name: What an error calls a picture, by its index.
        files: Those that are read; a cache is of use while their names, sizes and times stay.
        labels: The attributes by name.
        whole: Returns all as bytes of shape $(N, C, H, W)$, if they lie in the files like this.
        shape: The shape $(C, H, W)$ of `whole`.
    """

    told: str
    count: int
    picture: Callable[[int], Image.Image]
    name: Callable[[int], str]
    files: Sequence[Path]
    labels: dict[str, Labels]
    whole: Callable[[], np.ndarray] | None = None
    shape: tuple[int, ...] = ()


def named(names: Sequence[str], most: int = 3) -> str:
    """Returns the first of some names as text."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Returns bytes of shape $(C, H, W)$ as a picture."""
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def decoded(source: Source, rows: Sequence[int], size: int | None, channels: int | None, progress: bool) -> Iterator[np.ndarray]:
    """Yields pictures as bytes of shape $(C, H, W)$, all of one shape.

    Args:
        source: Where they are.
        rows: Which of them, in order.
        size: The length of both sides; None keeps that of the files.
        channels: 1 or 3; None for that of the first picture.
        progress: Whether to show a bar.

    Raises:
        ShapeError: Pictures have several sizes and `size` is None, or one is in colour and the first is not.
        FileFormatError: A file is damaged.
    """
    from tqdm import tqdm

    first: tuple[str, tuple[int, int], int] | None = None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, tqdm(total=len(rows), desc=source.told, disable=not progress) as bar:
        for start in range(0, len(rows), _AHEAD):
            some = rows[start : start + _AHEAD]
            for row, picture in zip(some, pool.map(lambda row: _sized(source.picture(row), size), some), strict=True):
                name = source.name(row)
                found = len(picture.getbands())
                first = first or (name, picture.size, channels or found)
                if picture.size != first[1]:
                    raise ShapeError(
                        f"{first[0]} has {_times(first[1])} pixels and {name} {_times(picture.size)}: "
                        "give size= to make all squares of one size."
                    )
                if channels is None and found > first[2]:
                    raise ShapeError(f"{first[0]} is grey and {name} in colour: give channels=1 or channels=3.")
                pixels = np.asarray(picture if found == first[2] else picture.convert(_MODES[first[2]]))
                yield pixels[None] if first[2] == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
                bar.update()


def opened(path: Path) -> Image.Image:
    """Returns the picture in a file, upright, with mode L or RGB; what is transparent shows its colour.

    Raises:
        FileFormatError: The file is damaged, or its numbers do not fit a byte.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            ImageOps.exif_transpose(picture, in_place=True)
            if picture.mode in ("I;16", "I;16L", "I;16B"):  # Pillow would cut these at 255
                return Image.fromarray((np.asarray(picture).astype(np.uint32) // 257).astype(np.uint8))
            if picture.mode == "P" and "transparency" in picture.info:  # Pillow warns unless it goes this way
                return picture.convert("RGBA").convert("RGB")
            if picture.mode in ("I", "F"):
                raise FileFormatError(f"{path} has pixels of 32 bits, whose range is unknown: save it with 8 bits a channel.")
            return picture.convert("L" if picture.mode in ("1", "L", "LA", "La") else "RGB")
    except FileFormatError:
        raise
    except Exception as error:  # which ones a damaged file raises, Pillow does not say
        raise FileFormatError(f"{path} cannot be read as a picture ({error}): it is damaged or cut off. Replace or delete it.") from None


def _sized(picture: Image.Image, size: int | None) -> Image.Image:
    """The shorter side becomes `size`, then the middle is cut out."""
    if size is None or picture.size == (size, size):
        return picture
    from PIL import Image

    width, height = picture.size
    short = min(width, height)
    width, height = max(size, round(width * size / short)), max(size, round(height * size / short))
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
