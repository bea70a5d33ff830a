"""Training faces: drawn once into a memory-mapped file of bytes."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

from composable_energy.files import replace_file
from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS, draw
from composable_energy_faces.networks import SIZE
from composable_energy_image.data import Labels, Pictures

SEEDS = {"train": 1, "judge": 2, "test": 3}
"""Seeds of the faces. The judge and the energies train on different faces, and are scored on a third set."""

PART = 4_000
"""Faces that are drawn and marked as done together."""


def draw_to(folder: Path, count: int, seed: int) -> Pictures:
    """Draws faces of a seed into a folder, or resumes, and returns them with their attributes; the count is rounded up to `PART`."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, file = -(-count // PART), folder / "faces.npy"
    pixels = np.lib.format.open_memmap(file, "r+" if file.exists() else "w+", np.uint8, (parts * PART, 3, SIZE, SIZE))
    labels = [folder / f"part-{index:03d}.safetensors" for index in range(parts)]
    for index, name in enumerate(tqdm(labels, desc=folder.name, unit="part")):
        if name.exists():
            continue
        faces = draw(PART, seed=seed, start=index * PART)
        pixels[index * PART : (index + 1) * PART] = faces.images.mul(255).round_().byte().numpy()
        pixels.flush()
        # last, because the file marks the pictures as done
        replace_file(name, save({"attributes": faces.attributes.byte(), "hair": faces.hair.byte()}))
    truth = [load_file(name) for name in labels]
    attributes, hair = (torch.cat([part[key] for part in truth]).long() for key in ("attributes", "hair"))
    binary = {name: Labels(attributes[:, column].contiguous(), ("no", "yes")) for column, name in enumerate(ATTRIBUTES)}
    return Pictures(np.load(file, mmap_mode="r"), binary | {"hair": Labels(hair, HAIR_COLORS)}, "drawn faces")
