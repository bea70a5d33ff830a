"""Worlds on disk: pictures and masks as files of bytes that are mapped into memory, labels beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from composable_energy.data.world import Scenes, World
from composable_energy.errors import FileFormatError

__all__ = ["PART", "open_scenes", "render_to"]

PART = 1_000
"""Pictures that are drawn and vouched for together."""

_TOLD, _LABELS, _IMAGES, _MASKS = "world.json", "labels.npz", "images.npy", "masks.npy"


def render_to(folder: Path, world: World, n: int, seed: int = 0, *, masks: bool = False, progress: bool = False) -> Scenes:
    """Draws pictures of a seed into a folder, or goes on where it stopped, and returns them mapped from there.

    The folder has `images.npy`, bytes with shape $(N, C, H, W)$; `labels.npz`, an array for each field; `masks.npy`, bytes with shape
    $(N, H, W)$, if asked for; and `world.json`, which says what they are.

    Args:
        folder: Where to.
        world: What to draw.
        n: How many pictures.
        seed: Which.
        masks: Whether masks are wanted.
        progress: Whether to show a bar.

    Raises:
        FileFormatError: The folder holds other pictures.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    told = {"world": world.name, "size": world.size, "n": n, "seed": seed, "masks": masks, "done": 0}
    told["done"] = _done(folder, told)
    new = told["done"] == 0
    labels = world.labels(n, seed)
    np.savez(folder / _LABELS, **labels)  # pyright: ignore[reportArgumentType]
    mode = "w+" if new else "r+"
    pixels = np.lib.format.open_memmap(folder / _IMAGES, mode, np.uint8, (n, world.channels, world.size, world.size))
    regions = np.lib.format.open_memmap(folder / _MASKS, mode, np.uint8, (n, world.size, world.size)) if masks else None
    with tqdm(total=n, initial=told["done"], desc=world.name, unit="img", disable=not progress) as bar:
        for first in range(told["done"], n, PART):
            rows = slice(first, min(first + PART, n))
            scenes = world.render({name: array[rows] for name, array in labels.items()}, masks=masks)
            pixels[rows] = scenes.images
            pixels.flush()
            if regions is not None and scenes.masks is not None:
                regions[rows] = scenes.masks
                regions.flush()
            _write(folder, told | {"done": rows.stop})  # last, so it vouches for the pictures
            bar.update(rows.stop - first)
    if n == 0:
        _write(folder, told)
    return open_scenes(folder)


def open_scenes(folder: Path) -> Scenes:
    """Returns the pictures of a folder that `render_to` finished; pixels and masks are mapped, not read.

    Raises:
        FileFormatError: The folder holds none, or they are not finished.
    """
    told = _read(folder)
    if told is None or told["done"] != told["n"]:
        state = "holds no rendered pictures" if told is None else f"has {told['done']} of {told['n']} pictures"
        raise FileFormatError(f"The folder {folder} {state}: draw them with `composable-energy render WORLD -n N -o {folder}`.")
    try:
        with np.load(folder / _LABELS) as file:
            labels = dict(file)
        images = np.load(folder / _IMAGES, mmap_mode="r")
        masks = np.load(folder / _MASKS, mmap_mode="r") if told["masks"] else None
    except (OSError, ValueError) as error:
        raise FileFormatError(f"Cannot read the pictures in {folder}: {error}. Delete the folder and draw them again.") from error
    return Scenes(images, labels, masks)


def _done(folder: Path, told: dict[str, object]) -> int:
    before = _read(folder)
    if before is None:
        return 0
    differing = [name for name in told if name != "done" and before.get(name) != told[name]]
    if differing:
        said = ", ".join(f"{name} {before.get(name)!r} instead of {told[name]!r}" for name in differing)
        raise FileFormatError(f"The folder {folder} holds other pictures: {said}. Take another folder, or delete this one.")
    return before["done"]


def _read(folder: Path) -> dict | None:
    try:
        return json.loads((folder / _TOLD).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FileFormatError(f"Cannot read {folder / _TOLD}: {error}.") from error


def _write(folder: Path, told: Mapping[str, object]) -> None:
    half = folder / f".{_TOLD}"
    half.write_text(json.dumps(told) + "\n")
    half.replace(folder / _TOLD)
