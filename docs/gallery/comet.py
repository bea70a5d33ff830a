"""Draws decomposed and recombined sprites, without selection.

python docs/gallery/comet.py
"""

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from faces import IMG, INK
from torch.nn import functional as F

import composable_energy as ce

COLUMNS, GAP, ENLARGED = 10, 2, 4


def pictures(seed):
    """Returns sprites of 16 pixels."""
    scenes = ce.get("world", "colored-sprites", size=32).draw(COLUMNS, seed=seed)
    return F.avg_pool2d(torch.from_numpy(scenes.images).float() / 255, 2)


def dark_on_the_right(x):
    """Returns an energy that is low for a dark right half."""
    return 2 * x[..., 8:].flatten(1).sum(1)


def rows(comet):
    """Returns the title and the pictures of each row."""
    x, y = pictures(5), pictures(6)
    alone = [part.sample(COLUMNS, seed=0) for part in comet.decompose(x)]
    parts, others = comet.decompose(x), comet.decompose(y)
    mixed = parts[1] & parts[2] & others[2] & others[3]
    dark = ce.all_of(*parts) & dark_on_the_right
    return [
        ("x", x),
        ("recombine(parts)", comet.recombine(parts)),
        *((f"parts[{k}]", images) for k, images in enumerate(alone)),
        ("y", y),
        ("parts[1] & parts[2] & others[2] & others[3]", mixed.sample(COLUMNS, seed=0)),
        ("swap(x, y, 3)", comet.swap(x, y, 3)),
        ("all_of(*parts) & dark_on_the_right", dark.sample(COLUMNS, seed=0)),
    ]


def strip(images):
    """Returns one image of the pictures side by side, with shape (H, W, 3)."""
    large = F.interpolate(images, scale_factor=ENLARGED)
    framed = F.pad(large, (0, GAP * ENLARGED), value=1.0)
    return torch.cat(list(framed), 2)[..., : -GAP * ENLARGED].permute(1, 2, 0)


def draw(titled, path):
    """Draws the rows with their titles."""
    figure, panels = plt.subplots(
        len(titled), 1, figsize=(9, 1.06 * len(titled)), layout="constrained"
    )
    for panel, (title, images) in zip(panels, titled, strict=True):
        panel.imshow(strip(images), interpolation="nearest")
        panel.set_title(
            title, loc="left", fontfamily="monospace", fontsize=10, color=INK, pad=3
        )
        panel.axis("off")
    figure.savefig(IMG / path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(rows(ce.get("encoder", "comet", weights="sprites")), "comet.png")
