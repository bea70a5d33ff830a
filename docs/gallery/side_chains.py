"""Draws the density of two angles of leucine: exact, and drawn.

python -m benchmarks.side_chains --write
python docs/gallery/side_chains.py
"""

import math
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file

from composable_energy_molecules import GeneratedRotamers, context_of

ROOT = Path(__file__).parents[2]
DRAWS = ROOT / "benchmarks" / "results" / "side_chains.safetensors"
CONTEXT = context_of("LEU", -1.1, -0.8, "GLY", "LEU")


def exact_density(side=180):
    """Returns minus the energy on a grid of both angles, in degrees."""
    angles = (torch.arange(side) + 0.5) * 2 * math.pi / side - math.pi
    pairs = torch.cartesian_prod(angles, angles)
    points = torch.cat([pairs, torch.zeros_like(pairs)], 1)
    energy = GeneratedRotamers().given(context=CONTEXT)
    return -energy(points).view(side, side)


def draw(path):
    """Draws three panels: the exact density, and draws over its contours."""
    density, draws = exact_density(), load_file(DRAWS)
    density = density - density.max()
    titles = ("exact density", "draws of the exact energy", "draws of the network")
    figure, panels = plt.subplots(
        1, 3, figsize=(9, 3.2), layout="constrained", sharey=True
    )
    extent = (-180, 180, -180, 180)
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(r"$\chi_1$ (degrees)")
        panel.set_xticks([-180, -60, 60, 180])
        panel.set_yticks([-180, -60, 60, 180])
        panel.contour(
            density.T.numpy(),
            levels=[-5, -3, -1],
            extent=extent,
            colors="0.6",
            linewidths=0.6,
        )
    panels[0].set_ylabel(r"$\chi_2$ (degrees)")
    panels[0].imshow(
        density.exp().T.numpy(),
        origin="lower",
        extent=extent,
        cmap="Blues",
        aspect="equal",
    )
    for panel, name in zip(panels[1:], ("exact density", "network"), strict=True):
        degrees = torch.rad2deg(draws[name])
        panel.scatter(degrees[:, 0], degrees[:, 1], s=2, color="tab:blue", alpha=0.5)
        panel.set_aspect("equal")
        panel.set_xlim(-180, 180)
        panel.set_ylim(-180, 180)
    figure.savefig(path, dpi=140)
    plt.close(figure)


if __name__ == "__main__":
    draw(ROOT / "docs" / "img" / "side-chains.png")
