"""Draws negations of a Gaussian beside a ring, and an exclusive or.

python docs/gallery/negation.py
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap

import composable_energy as ce

DOCS = Path(__file__).parent.parent
LEVEL = 2.996  # 95 % of a unit Gaussian on the plane
SHADES = LinearSegmentedColormap.from_list(
    "shades", ["#ffffff", "#c5cae9", "#7986cb", "#303f9f"]
)


def main():
    """Draws the picture."""
    ring = ce.as_energy(
        lambda x: 8 * (x.square().sum(1).add(1e-9).sqrt() - 2).square(),
        name="ring",
        event_shape=(2,),
    )
    right = ce.as_energy(
        lambda x: ((x[:, 0] - 2).square() + x[:, 1].square()) / 2,
        name="right",
        event_shape=(2,),
    )
    wide = ce.as_energy(
        torch.distributions.MultivariateNormal(
            torch.zeros(2, dtype=torch.float64), 9 * torch.eye(2, dtype=torch.float64)
        ),
        name="wide",
    )
    panels = {
        "ring & ~right, level": ring & ce.negate(right, "level", level=LEVEL),
        "ring & ~right, power": ring & ce.negate(right, "power"),
        "ring & ~right, contrast": ring & ~right.relative_to(wide),
    }
    panels["ring ^ right"] = ce.calibrate(ring ^ right, seed=0, dtype=torch.float64)
    axis = torch.linspace(-4, 4.5, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    border = (right(grid) - LEVEL).view(301, 301).T
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
