"""The reader of folders that `composable-energy render` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import is_directory, is_file
from composable_energy_image.data.labels import Labels, labels_from_numbers
from composable_energy_image.data.scene_files import open_scenes, read_classes
from composable_energy_image.data.source import PictureSource, ReadRequest, to_image


def is_rendered(path: Path) -> bool:
    """Returns whether a folder holds a rendered world."""
    return is_directory(path) and is_file(path / "world.json") and is_file(path / "labels.npz")


def read_rendered(request: ReadRequest) -> PictureSource:
    """Reads a rendered world. Labels with one class for each picture become attributes; numbers, and labels of several objects, do not.

    Raises:
        FileFormatError: The pictures are unfinished or damaged.
        OptionError: A table of labels is given, or a part that does not exist.
    """
    folder = request.path
    world, classes = read_classes(folder)
    description = f"a rendered world, {world}"
    request.reject_labels(description)
    request.check_part(("train",), f"{description} (render the other part with another seed)")
    scenes = open_scenes(folder)
    if not len(scenes):
        raise FileFormatError(f"{folder} holds no pictures: render some with `composable-energy render {world} -n N -o {folder}`.")
    labels = {
        name: _to_labels(folder, name, array, classes.get(name))
        for name, array in scenes.labels.items()
        if array.ndim == 1 and array.dtype.kind in "bi"
    }
    if left_out := [name for name in scenes.labels if name not in labels]:
        description += f" (no classes: {', '.join(left_out)})"
    pixels = scenes.images

    def name_of(row: int) -> str:
        return f"{folder}, picture {row}"

    files = [folder / "images.npy", folder / "labels.npz"]
    return PictureSource(
        description, len(pixels), lambda row: to_image(pixels[row]), name_of, files, labels, lambda: pixels, pixels.shape[1:]
    )


def _to_labels(folder: Path, name: str, array: np.ndarray, names: tuple[str, ...] | None) -> Labels:
    values = torch.from_numpy(array.astype(np.int64))
    try:
        return labels_from_numbers(values) if names is None else Labels(values, names)
    except OptionError as error:
        raise FileFormatError(f"{folder}, labels {name!r}: {error}") from None
