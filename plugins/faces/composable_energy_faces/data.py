"""The faces that training reads: drawn once into files of bytes, mapped into memory when read."""

from __future__ import annotations

__all__ = ["SEEDS", "FaceFiles", "draw_to"]

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from .draw import draw

SEEDS = {"train": 1, "judge": 2, "test": 3}
"""Faces of different seeds never meet: the judge learns from other faces than the energies, and both are scored on a third set."""

_SHARD = 4_000


class FaceFiles:
    """Faces on disk, in [0, 1] when read.

    Args:
        folder: Where `draw_to` wrote them.
        shards: How many files.
    """

    def __init__(self, folder: Path, shards: int) -> None:
        names = [folder / f"faces-{index:03d}" for index in range(shards)]
        self._images = [np.load(name.with_suffix(".npy"), mmap_mode="r") for name in names]
        labels = [load_file(name.with_suffix(".safetensors")) for name in names]
        self.attributes = torch.cat([part["attributes"] for part in labels]).float()
        self.hair = torch.cat([part["hair"] for part in labels]).long()

    def __len__(self) -> int:
        return len(self.hair)

    def images(self, index: Tensor) -> Tensor:
        """Returns the pictures at these indices, with shape $(B, 3, 64, 64)$."""
        rows = np.stack([self._images[i // _SHARD][i % _SHARD] for i in index.tolist()])
        return torch.from_numpy(rows).float().div_(255)


def draw_to(folder: Path, count: int, seed: int) -> FaceFiles:
    """Draws faces of a seed into a folder, or goes on where it stopped, and returns them.

    Args:
        folder: Where to write.
        count: How many, rounded up to whole files of 4,000.
        seed: Which faces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-count // _SHARD)
    for index in tqdm(range(shards), desc=folder.name, unit="file"):
        name = folder / f"faces-{index:03d}"
        if name.with_suffix(".safetensors").exists():
            continue
        faces = draw(_SHARD, seed=seed, start=index * _SHARD)
        half = name.with_suffix(".half.npy")
        np.save(half, faces.images.mul(255).round_().byte().numpy())
        half.replace(name.with_suffix(".npy"))
        half = name.with_suffix(".half")
        save_file({"attributes": faces.attributes.byte(), "hair": faces.hair.byte()}, half)
        half.replace(name.with_suffix(".safetensors"))  # last, so it vouches for the pictures
    return FaceFiles(folder, shards)
