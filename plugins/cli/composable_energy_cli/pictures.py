"""Reading and writing of points: images, grids, which `read_points` splits by the layout in their text chunk, and arrays."""

from __future__ import annotations

import json
import math
import os
import zipfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from composable_energy.errors import FileFormatError, OptionError, ShapeError
from composable_energy.files import is_directory, is_file, replace_file
from composable_energy_viz.files import LARGEST_PICTURE, MODES, check_archive, fitted, is_picture, read_picture

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
ARRAYS = (".npy", ".npz")


def check_target(path: Path, shape: tuple[int, ...]) -> None:
    """Raises if points of a shape cannot be written to a file; called before sampling."""
    if path.suffix.lower() not in PICTURES + ARRAYS:
        raise OptionError(f"-o takes a file that ends in {', '.join(PICTURES + ARRAYS)}, got {str(path)!r}.")
    if not (is_directory(path.parent) and os.access(path.resolve().parent, os.W_OK)):
        raise OptionError(f"-o {path}: there is no folder {str(path.parent)!r}, or no file can be written to it.")
    if is_directory(path):
        raise OptionError(f"-o {path} is a folder; name a file.")
    if path.suffix.lower() in PICTURES and not is_picture(shape):
        raise OptionError(f"Draws of shape {shape} are not images; write them to a file that ends in .npy or .npz.")


def write_array(path: Path, points: Tensor) -> None:
    """Writes points as an array, named `samples` in an .npz file."""
    import numpy as np

    values, file = points.detach().cpu().numpy(), BytesIO()
    if path.suffix.lower() == ".npz":
        np.savez_compressed(file, samples=values)
    else:
        np.save(file, values)
    replace_file(path, file.getvalue())


def read_points(path: Path, shapes: list[tuple[int, ...]], value_range: tuple[float, float]) -> Tensor:
    """Returns the points in an image, a PNG grid of `write_grid`, or an .npy or .npz file, with shape (n, *shape) for one of the shapes."""
    if not is_file(path):
        raise FileFormatError(f"There is no file {str(path)!r}.")
    if path.suffix.lower() in ARRAYS:
        return _read_array(path, shapes)
    if not (pictures := [shape for shape in shapes if is_picture(shape)]):
        raise ShapeError(f"{path} is an image, and the energy takes points of shape {shapes[0]}; give them as an .npy file.")
    return _read_picture(path, pictures[0], value_range)


def _read_array(path: Path, shapes: list[tuple[int, ...]]) -> Tensor:
    import numpy as np
    import torch

    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        if isinstance(loaded := np.load(path, allow_pickle=False), np.lib.npyio.NpzFile):
            with loaded:
                if "samples" not in loaded.files and len(loaded.files) != 1:
                    raise ValueError(f"of its arrays {', '.join(loaded.files)} none is named samples")
                loaded = loaded["samples" if "samples" in loaded.files else loaded.files[0]]
        points = torch.from_numpy(np.asarray(loaded).astype(np.float64, casting="same_kind"))
    except FileFormatError:
        raise
    except Exception as error:  # numpy raises various errors for other files
        raise FileFormatError(f"{path} is not an array of numbers: {str(error).partition(' If you')[0].rstrip('.')}.") from error
    for shape in shapes:
        if points.shape == shape:
            return points.unsqueeze(0)
        if points.shape[1:] == shape and len(points):
            return points
    wanted = " or ".join(f"(n, {', '.join(map(str, shape))})" for shape in shapes)
    raise ShapeError(f"{path} has points of shape {tuple(points.shape)}; the energy takes {wanted}.")


def _read_picture(path: Path, shape: tuple[int, ...], value_range: tuple[float, float]) -> Tensor:
    import numpy as np
    import torch

    channels, height, width = shape
    tiles = [fitted(one.convert(MODES[channels]), width, height) for one in _tiles(path, LARGEST_PICTURE // math.prod(shape))]
    values = np.stack([np.asarray(tile, dtype=np.float64).reshape(height, width, channels) for tile in tiles])
    low, high = value_range
    return torch.from_numpy(values).permute(0, 3, 1, 2) / 255 * (high - low) + low


def _tiles(path: Path, most: int) -> list[Image.Image]:
    """Returns the images of a grid, whose text chunk is the layout, else the image itself."""
    from PIL import Image

    picture, text = read_picture(path)
    try:
        grid = json.loads(text)
        n, columns, height, width, gap = (int(grid[key]) for key in ("n", "columns", "height", "width", "gap"))
        zoom = int(grid.get("zoom", 1))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return [picture]
    across, down = width + gap, height + gap
    if (
        min(n, columns, height, width, gap + 1, zoom) < 1
        or zoom * (columns * across - gap) != picture.width
        or zoom * (-(-n // columns) * down - gap) != picture.height
    ):
        return [picture]  # it was cropped or resized
    if n > most:
        raise FileFormatError(f"{path} is a sheet of {n:,} pictures, and {most:,} of this size at most are read: cut it.")
    picture = picture.resize((picture.width // zoom, picture.height // zoom), Image.Resampling.NEAREST)
    corners = [(i % columns * across, i // columns * down) for i in range(n)]
    return [picture.crop((x, y, x + width, y + height)) for x, y in corners]
