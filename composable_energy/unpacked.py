"""Limits on what a compressed file may become in memory, checked before it is unpacked."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from composable_energy.errors import FileFormatError

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 2**32
"""The largest number of bytes that a file compressed by gzip, or an archive of numpy, may unpack to."""
LARGEST_PICTURE = 2**26
"""The largest number of pixels of a picture in a file."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # others need other programs, as PostScript does, or readers that few use
_BLOCK = 2**20


def open_picture(path: Path) -> Image.Image:
    """Opens a picture in PNG, JPEG, WebP or BMP, whatever its name, and reads its header only.

    Raises:
        FileFormatError: It has another format, or more than 2**26 pixels.
    """
    from PIL import Image, UnidentifiedImageError

    found = "too many"
    try:
        picture = Image.open(path, formats=_FORMATS)
        if picture.width * picture.height <= LARGEST_PICTURE:
            return picture
        found = f"{picture.width:,} x {picture.height:,}"
        picture.close()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow has limits of its own
        pass
    except UnidentifiedImageError:
        raise FileFormatError(f"{path} cannot be read as a picture in {', '.join(_FORMATS)}. Replace or delete it.") from None
    raise FileFormatError(f"{path} has {found} pixels, and {LARGEST_PICTURE:,} at most are read: make it smaller.")


def check_archive(path: Path) -> None:
    """Raises if the files in a zip archive, such as `.npz`, are too large; reads the list of its files only.

    Raises:
        FileFormatError: They have more than 2**32 bytes together.
        BadZipFile: It is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST:
        raise FileFormatError(f"{path} unpacks to {size:,} bytes, and {LARGEST:,} at most are read: save parts, or arrays as .npy files.")


def check_gzip(path: Path, largest: int = LARGEST) -> None:
    """Raises if a file compressed by gzip is damaged or too large; unpacks it piece by piece, and keeps nothing.

    Args:
        path: The file.
        largest: The largest number of bytes.

    Raises:
        FileFormatError: It is damaged, or unpacks to more.
    """
    size = 0
    try:
        with gzip.open(path) as file:
            while found := len(file.read(_BLOCK)):
                size += found
                if size > largest:
                    raise FileFormatError(f"{path} unpacks to more than {largest:,} bytes, the most that are read.")
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged(path, error) from None


def read_gzip(path: Path, most: int) -> bytes:
    """Returns the first bytes of a file compressed by gzip.

    Args:
        path: The file.
        most: How many bytes are read at most.

    Raises:
        FileFormatError: It is damaged, or `most` is more than 2**32.
    """
    if most > LARGEST:
        raise FileFormatError(f"{path} unpacks to {most:,} bytes, and {LARGEST:,} at most are read: unpack it to a plain file.")
    try:
        with gzip.open(path) as file:
            return file.read(most)
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(f"{path} cannot be decompressed ({error}): it is damaged or truncated. Download it again.")
