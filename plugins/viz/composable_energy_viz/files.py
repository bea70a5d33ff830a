"""Files of pictures: grids whose layout a PNG file stores, and limits on what packed files become, checked before they are unpacked."""

from __future__ import annotations

import gzip
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composable_energy.errors import FileFormatError, OptionError, ShapeError
from composable_energy.files import is_directory, is_file, replace_file

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

KEY = "composable-energy"  # the text chunk of the layout of a grid
LARGEST = 2**32
"""The largest number of bytes that a file compressed by gzip, or an archive of numpy, may unpack to."""
LARGEST_PICTURE = 2**26
"""The largest number of pixels of a picture in a file."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # others need other programs, as PostScript does, or readers that few use
MODES = {1: "L", 3: "RGB"}  # of pictures of Pillow, by channels
_BLOCK = 2**20
_GAP = 2


def regular(path: Path) -> Path:
    """Returns the path of a regular file, or raises `FileFormatError`: to open a pipe never returns."""
    if is_file(path):
        return path
    raise FileFormatError(f"{path} is missing, or no regular file: replace or delete it.")


def read_picture(path: Path) -> tuple[Image.Image, str]:
    """Returns the picture in a file of PNG, JPEG, WebP or BMP, whatever its name, and the layout of a grid, or "". It is upright, in mode L
    or RGB, and white where it is transparent."""
    from PIL import Image, UnidentifiedImageError

    most = f"pixels, and {LARGEST_PICTURE:,} at most are read: make it smaller."
    try:
        with Image.open(regular(path), formats=_FORMATS) as picture:
            if picture.width * picture.height > LARGEST_PICTURE:
                raise FileFormatError(f"{path} has {picture.width:,} x {picture.height:,} {most}")
            stored = str(picture.tile)  # names the channels in the file and their bits
            picture.load()
            return _in_8_bits(picture, path, stored), picture.info.get(KEY, "")
    except FileFormatError:
        raise
    except UnidentifiedImageError:
        raise FileFormatError(f"{path} cannot be read as a picture in {', '.join(_FORMATS)}. Replace or delete it.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow has limits of its own
        raise FileFormatError(f"{path} has too many {most}") from None
    except Exception as error:  # Pillow does not document its errors for damaged files
        raise FileFormatError(f"{path} cannot be read as a picture ({error}): it is damaged or truncated. Replace or delete it.") from None


def _in_8_bits(picture: Image.Image, path: Path, stored: str) -> Image.Image:
    import numpy as np
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(picture, in_place=True)
    if (clear := picture.info.get("transparency")) and ("L;4" in stored or "L;2" in stored):
        picture.info["transparency"] = clear * (17 if "L;4" in stored else 85)  # as Pillow does with pixels
    if picture.mode in ("I;16", "I;16L", "I;16B"):  # Pillow would clip these at 255, and lose what is transparent
        values = np.asarray(picture).astype(np.uint16)
        picture = Image.fromarray(np.stack([values >> 8, np.where(values == clear, 0, 255)], 2).astype(np.uint8))
    if ";16B" in stored and 0 < np.asarray(picture.convert("RGB")).max() < 2**4:
        known = "A picture with 16 bits a channel has none above 4,095 of 65,535"
        warnings.warn(f"{known}, so it is nearly black. If its camera has 12 bits, save its pixels times 16.", stacklevel=2)
    if picture.mode in ("I", "F"):
        raise FileFormatError(f"{path} has pixels of 32 bits, whose range is unknown: save it with 8 bits a channel.")
    mode = "L" if picture.mode in ("1", "L", "LA", "La") or "LA;16B" in stored else "RGB"
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert(mode)


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Resizes a picture until one side fits, then crops the other at the centre."""
    from PIL import Image

    if picture.width * height < picture.height * width:
        size = width, round(picture.height * width / picture.width)
    else:
        size = round(picture.width * height / picture.height), height
    return crop_centre(picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS), width, height)


def crop_centre(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Returns the middle of a picture."""
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def is_picture(shape: tuple[int, ...]) -> bool:
    """Returns whether points of a shape are images: (1, H, W) grey or (3, H, W) in color."""
    return len(shape) == 3 and shape[0] in (1, 3)


def check_range(images: Tensor, beyond: float = 0.0) -> Tensor:
    """Returns pictures in [0, 1], or not further than `beyond` from it; raises `OptionError` if they are others."""
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
    if not -beyond <= low <= high <= 1 + beyond:
        hints = {"write `(images + 1) / 2`": -1 <= low < 0 and high <= 1, "write `images / 255`": low >= 0 and high <= 255}
        hint = next((hint for hint, fits in hints.items() if fits), "scale them")
        raise OptionError(f"Pictures must lie in [0, 1], got {low:.4g} to {high:.4g}: {hint}.")
    return images


def check_path(path: str | Path, known: bool, kinds: str) -> Path:
    """Returns the path of a picture that will be written, if its ending is `known`, one of `kinds`, and its folder exists."""
    path = Path(path)
    if not known:
        raise OptionError(f"path takes a file that ends in {kinds}, got {str(path)!r}.")
    if not is_directory(path.parent):
        raise OptionError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}.")
    return path


def check_labels(labels: Sequence[object], count: int, what: str) -> list[str]:
    """Returns labels as texts."""
    if isinstance(labels, str) or len(labels) != count:
        raise ShapeError(f"labels must be one for each of {count} {what}, got {'a text' if isinstance(labels, str) else len(labels)}.")
    return [str(label) for label in labels]


def layout(n: int) -> tuple[int, int]:
    """Returns rows and columns for n tiles: a full grid if it is at most twice as wide as high, else a square with empty tiles."""
    root = math.ceil(math.sqrt(n))
    columns = next((c for c in range(root, math.isqrt(2 * n) + 1) if n % c == 0), root)
    return math.ceil(n / columns), columns


def write_grid(
    path: Path, images: Tensor, value_range: tuple[float, float], about: Mapping[str, Any], *, least: int = 0, columns: int | None = None
) -> None:
    """Writes images $(n, C, H, W)$ as a grid, with metadata in a PNG file; one below `least` pixels is enlarged by a whole factor."""
    from PIL import Image

    n, _, height, width = images.shape
    columns = columns or layout(n)[1]
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, math.ceil(n / columns) * (height + _GAP) - _GAP), "white")
    low, high = value_range
    for i, image in enumerate(images.detach()):
        pixels = image.cpu().float().sub(low).div(high - low).clamp(0, 1).mul(255).round().byte()
        tile = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        row, column = divmod(i, columns)
        sheet.paste(tile, (column * (width + _GAP), row * (height + _GAP)))
    zoom = max(1, math.ceil(least / max(sheet.size)))
    sheet = sheet.resize((zoom * sheet.width, zoom * sheet.height), Image.Resampling.NEAREST) if zoom > 1 else sheet
    write_image(path, sheet, {**about, "n": n, "columns": columns, "height": height, "width": width, "gap": _GAP, "zoom": zoom})


def write_image(path: Path, image: Image.Image, about: Mapping[str, Any] | None = None, **options: Any) -> None:
    """Writes an image of Pillow atomically, in the format of the path's suffix; a PNG file keeps the metadata of a grid."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    file, kind = BytesIO(), Image.registered_extensions()[path.suffix.lower()]
    if kind == "PNG" and about is not None:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(KEY, json.dumps(about))
    image.save(file, kind, **options)
    replace_file(path, file.getvalue())


def check_archive(path: Path) -> None:
    """Raises if the files in a zip archive, such as `.npz`, are too large; reads the list of its files only."""
    with zipfile.ZipFile(regular(path)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST:
        raise FileFormatError(f"{path} unpacks to {size:,} bytes, and {LARGEST:,} at most are read: save parts, or arrays as .npy files.")


def check_gzip(path: Path, largest: int = LARGEST) -> None:
    """Raises if a file compressed by gzip is damaged or too large; unpacks it piece by piece, and keeps nothing."""
    size = 0
    with _unpacked(path) as file:
        while found := len(file.read(_BLOCK)):
            size += found
            if size > largest:
                raise FileFormatError(f"{path} unpacks to more than {largest:,} bytes, the most that are read.")


def read_gzip(path: Path, most: int) -> bytes:
    """Returns the first bytes, `most` of them, of a file compressed by gzip."""
    if most > LARGEST:
        raise FileFormatError(f"{path} unpacks to {most:,} bytes, and {LARGEST:,} at most are read: unpack it to a plain file.")
    with _unpacked(path) as file:
        return file.read(most)


@contextmanager
def _unpacked(path: Path) -> Iterator[gzip.GzipFile]:
    """A context with a file that unpacks while it is read; a damaged one raises FileFormatError."""
    try:
        with gzip.open(regular(path)) as file:
            yield file
    except (EOFError, OSError, zlib.error) as error:
        raise FileFormatError(f"{path} cannot be decompressed ({error}): it is damaged or truncated. Download it again.") from None
