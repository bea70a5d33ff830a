"""Draws rows of small faces from a pipeline of diffusers, without selection.

python docs/gallery/pipelines.py
"""

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from faces import IMG, INK

import composable_energy as ce
from composable_energy_small_faces import ANY_FACE, PIPELINE, class_of

COLUMNS, GAP, SIZE = 10, 2, 32


def rows():
    """Returns the energies by the text of their expressions."""
    faces = ce.load(f"diffusers:{PIPELINE}", unconditional=ANY_FACE)

    def concept(name, present=True):
        return faces.concept(class_label=class_of(name, present))

    male, glasses, hat = (concept(name) for name in ("male", "glasses", "hat"))
    serious, female = concept("smiling", False), concept("male", False)
    no_smile = ce.negate(concept("smiling"), mode="power", weight=1.0)
    return {
        "male & smiling": male & concept("smiling"),
        "male & not_smiling": male & serious,
        "male & negate(smiling)": male & no_smile,
        "not_male & glasses": female & glasses,
        "male & not_smiling & glasses & hat": male & serious & glasses & hat,
    }


def strip(images):
    """Returns one image of the pictures side by side, with shape (H, W, 3)."""
    sheet = torch.ones(3, SIZE, len(images) * (SIZE + GAP) - GAP)
    for i, image in enumerate(images):
        sheet[:, :, i * (SIZE + GAP) : i * (SIZE + GAP) + SIZE] = image
    return sheet.permute(1, 2, 0)


def draw(energies, path):
    """Draws a row for each energy, with its expression as title."""
    figure, panels = plt.subplots(
        len(energies), 1, figsize=(9, 1.18 * len(energies)), layout="constrained"
    )
    for panel, (text, energy) in zip(panels, energies.items(), strict=True):
        images = energy.sharpened(3).sample(COLUMNS, sampler="sde", levels=20, seed=0)
        panel.imshow(strip(images), interpolation="nearest")
        panel.set_title(
            f"({text}).sharpened(3)",
            loc="left",
            fontfamily="monospace",
            fontsize=10.5,
            color=INK,
            pad=3,
        )
        panel.axis("off")
    figure.savefig(IMG / path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    torch.set_num_threads(1)
    draw(rows(), "diffusers.png")
