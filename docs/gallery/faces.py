"""Draws rows of faces, one expression per row, with default settings, unselected.

python docs/gallery/faces.py
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch

import composable_energy as ce

IMG = Path(__file__).parent.parent / "img"
COLUMNS = 10
INK = "#303f9f"


def rows():
    """Returns the energies by their printed expressions."""
    male, smiling, glasses, hat, old = (
        ce.load(f"faces/{name}")
        for name in ("male", "smiling", "glasses", "hat", "old")
    )
    red = ce.load("faces/hair=red")
    return [
        male & ~smiling,
        ~male & glasses,
        (male & smiling) | (~male & hat),
        smiling & glasses & hat & male,
        red & old & ~glasses,
    ]


def strip(images):
    """Returns one image of the pictures side by side, with shape (H, W, 3)."""
    size, gap = images.shape[-1], images.shape[-1] // 14
    sheet = torch.ones(3, size, len(images) * (size + gap) - gap)
    for i, image in enumerate(images):
        sheet[:, :, i * (size + gap) : i * (size + gap) + size] = image
    return sheet.permute(1, 2, 0)


def draw(energies, path, seed=0):
    """Draws a row for each energy, with its expression as title."""
    figure, panels = plt.subplots(
        len(energies), 1, figsize=(9, 1.18 * len(energies)), layout="constrained"
    )
    for panel, energy in zip(panels, energies, strict=True):
        panel.imshow(strip(energy.sample(COLUMNS, seed=seed)), interpolation="lanczos")
        panel.set_title(
            str(energy),
            loc="left",
            fontfamily="monospace",
            fontsize=10.5,
            color=INK,
            pad=3,
        )
        panel.axis("off")
    figure.savefig(IMG / path, dpi=140, pil_kwargs={"quality": 92, "subsampling": 0})
    plt.close(figure)


if __name__ == "__main__":
    draw(rows(), "faces.jpg")
