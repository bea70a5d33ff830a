"""Grids of images in one file; a PNG file stores the layout in a text chunk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composable_energy.files import replace_file

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

CHANNELS = (1, 3)
KEY = "composable-energy"  # the text chunk of the layout
_GAP = 2


def is_picture(shape: tuple[int, ...]) -> bool:
    """Returns whether points of a shape are images: (1, H, W) grey or (3, H, W) in color."""
    return len(shape) == 3 and shape[0] in CHANNELS


def layout(n: int) -> tuple[int, int]:
    """Returns rows and columns for n tiles: a full grid if it is at most twice as wide as high, else a square with empty tiles."""
    root = math.ceil(math.sqrt(n))
    columns = next((c for c in range(root, math.isqrt(2 * n) + 1) if n % c == 0), root)
    return math.ceil(n / columns), columns


def write_grid(path: Path, images: Tensor, value_range: tuple[float, float], about: Mapping[str, Any], *, least: int = 0) -> None:
    """Writes images as a grid.

    Args:
        path: The file.
        images: The images, with shape $(n, C, H, W)$.
        value_range: The values of black and white.
        about: Metadata for a PNG file.
        least: The least width or height of the grid in pixels; a smaller one is enlarged by a whole factor.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    n, _, height, width = images.shape
    rows, columns = layout(n)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white")
    low, high = value_range
    for i, image in enumerate(images.detach()):
        pixels = image.cpu().float().sub(low).div(high - low).clamp(0, 1).mul(255).round().byte()
        tile = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        row, column = divmod(i, columns)
        sheet.paste(tile, (column * (width + _GAP), row * (height + _GAP)))
    zoom = max(1, math.ceil(least / max(sheet.size)))
    sheet = sheet.resize((zoom * sheet.width, zoom * sheet.height), Image.Resampling.NEAREST) if zoom > 1 else sheet
    text = PngInfo()
    text.add_text(KEY, json.dumps({**about, "n": n, "columns": columns, "height": height, "width": width, "gap": _GAP, "zoom": zoom}))
    write_image(path, sheet, **({"pnginfo": text} if path.suffix.lower() == ".png" else {}))


def write_image(path: Path, image: Image.Image, **options: Any) -> None:
    """Writes an image of Pillow atomically, in the format of the path's suffix."""
    from PIL import Image

    file = BytesIO()
    image.save(file, Image.registered_extensions()[path.suffix.lower()], **options)
    replace_file(path, file.getvalue())
