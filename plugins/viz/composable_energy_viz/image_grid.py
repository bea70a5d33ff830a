"""Grids of images, as one picture of Pillow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer, check_interval
from composable_energy_viz.files import check_labels, check_path, is_picture, layout, write_image

if TYPE_CHECKING:
    from PIL import Image

_GAP, _LINE = 4, 18  # pixels: between images, and of a line of text
_WIDE, _SMALL = 512, 32  # pixels: the width that sheets reach, and the size below which pixels stay squares
_OUTSIDE = 0.05  # the share of values outside of the range that is tolerated


class PictureWarning(UserWarning):
    """A picture does not show its values as they are."""


def grid(
    images: Any,
    *,
    columns: int | None = None,
    labels: Sequence[object] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    scale: int | None = None,
    path: str | Path | None = None,
) -> Image.Image:
    """Returns images side by side as one picture of Pillow, which notebooks show.

    Args:
        images: Images of shape $(n, C, H, W)$ with $C$ = 1 or 3, or one of shape $(C, H, W)$; a tensor, an array, or a list of single ones.
            Integers are read as 0 to 255.
        columns: The number of images in a row; None takes a nearly square sheet.
        labels: A text for each image, below it.
        value_range: The values of black and white; values outside are clipped.
        scale: By how much images are enlarged, a whole number; None makes the sheet at least 512 pixels wide. Pixels of images below 32
            pixels stay squares, larger images are smoothed.
        path: A file to write as well. `composable-energy explain` finds the images in a PNG file without labels in the range 0 to 1.

    Raises:
        OptionError: A value is not finite, an option is out of range, or the file cannot be written.

    Warns:
        PictureWarning: More than 5 % of the values are clearly outside of the range.

    Example:
        >>> import torch, composable_energy as ce
        >>> ce.viz.grid(torch.rand(6, 3, 8, 8)).size
        (512, 340)
    """
    from PIL import Image

    pixels = _pixels(images, value_range)
    n, height, width, _ = pixels.shape
    columns = layout(n)[1] if columns is None else min(check_integer("columns", columns), n)
    rows = math.ceil(n / columns)
    fitting = math.ceil((_WIDE - (columns - 1) * _GAP) / (columns * width))
    scale = max(1, fitting) if scale is None else check_integer("scale", scale)
    tall, wide, gap = height * scale, width * scale, _GAP
    texts = None if labels is None else check_labels(labels, n, "images")
    line = _LINE if texts else 0
    if path is not None:
        known = Image.registered_extensions().get(Path(path).suffix.lower()) in Image.SAVE
        path = check_path(path, known, ".png, .jpg or .webp, or another format of Pillow")
    sheet = Image.new("RGB", (columns * (wide + gap) - gap, rows * (tall + line + gap) - gap), "white")
    how = Image.Resampling.NEAREST if max(height, width) < _SMALL else Image.Resampling.BICUBIC
    for i, tile in enumerate(pixels.numpy()):
        row, column = divmod(i, columns)
        corner = column * (wide + gap), row * (tall + line + gap)
        sheet.paste(Image.fromarray(tile).resize((wide, tall), how), corner)
        if texts:
            _write(sheet, texts[i].replace("\n", " "), corner[0], corner[1] + tall, wide)
    if isinstance(path, Path):
        about = {"n": n, "columns": columns, "height": tall, "width": wide, "gap": gap}
        write_image(path, sheet, None if texts or tuple(value_range) != (0, 1) else about)
    return sheet


def _pixels(images: Any, value_range: tuple[float, float]) -> Tensor:
    """Returns images as bytes with shape (n, H, W, 3)."""
    try:
        found = torch.stack([torch.as_tensor(image) for image in images]) if isinstance(images, list | tuple) else torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"images must be a tensor of shape (n, C, H, W), or a list of equal images (C, H, W): {error}.") from error
    shape = tuple(found.shape)
    found = found.detach().cpu()
    found = found.unsqueeze(0) if found.ndim == 3 else found
    if found.ndim != 4 or not is_picture(tuple(found.shape[1:])) or not found.numel():
        raise ShapeError(f"images must have the shape (n, C, H, W) or (C, H, W) with C = 1 or 3, got {shape}.{_advice(shape)}")
    low, high = check_interval("value_range", value_range)
    if not found.is_floating_point():
        low, high = 0, 1 if found.dtype == torch.bool else 255
    if not math.isfinite(high - low):
        raise OptionError(f"value_range takes two increasing numbers, such as (-1, 1), got {value_range}.")
    if not (unit := found.double().sub(low).div(high - low)).isfinite().all():
        raise OptionError(f"{int((~unit.isfinite()).flatten(1).any(1).sum())} of {len(unit)} images have values that are not finite.")
    if (outside := ((unit < -0.1) | (unit > 1.1)).double().mean().item()) > _OUTSIDE:
        warnings.warn(
            f"{outside:.0%} of the values are outside of {low:g} to {high:g} and clipped; the images go from {found.double().min():.3g} "
            f"to {found.double().max():.3g}: give {'' if found.is_floating_point() else 'floats and '}value_range=.",
            PictureWarning,
            stacklevel=3,
        )
    return unit.clamp(0, 1).mul(255).round().byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()


def _advice(shape: tuple[int, ...]) -> str:
    if shape and shape[-1] in (1, 3) and len(shape) in (3, 4):
        return " The channels seem to be last: `images.movedim(-1, -3)`."
    if len(shape) == 3:
        return " For grey images write `images.unsqueeze(1)`."
    return " For points on the plane use `show`." if len(shape) == 2 and shape[1] <= 2 else ""


def _write(sheet: Image.Image, text: str, x: int, y: int, width: int) -> None:
    """Writes a text below an image, as much of it as fits."""
    from PIL import ImageDraw, ImageFont

    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    while text and pen.textlength(text, font=font) > width:
        text = text[:-1]
    pen.text((x, y + 1), text, fill="#303030", font=font)
