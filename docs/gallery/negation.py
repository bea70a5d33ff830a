"""Draws negations of a Gaussian beside a ring, and an exclusive or.

python docs/gallery/negation.py
"""

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap

DOCS = Path(__file__).parent.parent
sys.path.insert(0, str(DOCS.parent))
SHADES = LinearSegmentedColormap.from_list(
    "shades", ["#ffffff", "#c5cae9", "#7986cb", "#303f9f"]
)


def main():
    """Draws the picture."""
    from benchmarks.negation import energies, modes, region

    found = energies()
    ring, right = found["ring"], found["right"]
    panels = {
        f"ring & ~right, {name}": energy
        for name, energy in modes(ring, right).items()
        if name != "soft"
    }
    panels["ring ^ right"] = ring ^ right
    axis = torch.linspace(-4, 4.5, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    border = (right(grid) - region(right)).view(301, 301).T
    figure, places = plt.subplots(
        1, len(panels), figsize=(2.5 * len(panels), 2.75), layout="constrained"
    )
    for place, (title, energy) in zip(places, panels.items(), strict=True):
        density = torch.softmax(-energy(grid).detach(), 0).view(301, 301).T
        place.pcolormesh(axis, axis, density, cmap=SHADES, rasterized=True)
        place.contour(axis, axis, border, levels=[0.0], colors="#d84315", linewidths=1)
        place.set(title=title, xticks=[], yticks=[], aspect="equal")
        place.title.set_fontsize(9)
    figure.savefig(DOCS / "img" / "negation.png", dpi=110)


if __name__ == "__main__":
    main()
