"""The faces that training reads: drawn once into a file of bytes, which is mapped into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS, draw
from composable_energy_faces.networks import SIZE
from composable_energy_image.data import Labels, Pictures

__all__ = ["SEEDS", "draw_to"]

SEEDS = {"train": 1, "judge": 2, "test": 3}
"""Faces of different seeds never meet: the judge learns from other faces than the energies, and both are scored on a third set."""

_PART = 4_000


def draw_to(folder: Path, count: int, seed: int) -> Pictures:
    """Draws faces of a seed into a folder, or goes on where it stopped, and returns them with their attributes.

    Args:
        folder: Where to write.
        count: How many, rounded up to whole parts of 4,000.
        seed: Which faces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts, file = -(-count // _PART), folder / "faces.npy"
    shape = (parts * _PART, 3, SIZE, SIZE)
    pixels = np.lib.format.open_memmap(file, "r+" if file.exists() else "w+", np.uint8, shape)
    told = [folder / f"part-{index:03d}.safetensors" for index in range(parts)]
    for index, name in enumerate(tqdm(told, desc=folder.name, unit="part")):
        if name.exists():
            continue
        faces = draw(_PART, seed=seed, start=index * _PART)
        pixels[index * _PART : (index + 1) * _PART] = faces.images.mul(255).round_().byte().numpy()
        pixels.flush()
        half = name.with_suffix(".half")
        save_file({"attributes": faces.attributes.byte(), "hair": faces.hair.byte()}, half)
        half.replace(name)  # last, so it vouches for the pictures
    truth = [load_file(name) for name in told]
    attributes, hair = (torch.cat([part[key] for part in truth]).long() for key in ("attributes", "hair"))
    labels = {name: Labels(attributes[:, column].contiguous(), ("no", "yes")) for column, name in enumerate(ATTRIBUTES)}
    return Pictures(np.load(file, mmap_mode="r"), labels | {"hair": Labels(hair, HAIR_COLORS)}, "drawn faces")
