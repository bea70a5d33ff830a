"""Draws the densities of trained toy energies, as in the tutorial `toy-energy.md`.

python docs/gallery/toy_energies.py
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap

import composable_energy_training as cet

PAPER, INK, DOT = "#ffffff", "#303f9f", "#d84315"
SHADES = LinearSegmentedColormap.from_list("shades", [PAPER, "#c5cae9", "#7986cb", INK])
EXTENT = 2.6


def train(name):
    """Returns the trained energy of a data set."""
    torch.manual_seed(0)
    points, energy = cet.toys.sample(name, 5000, seed=0), cet.MLPEnergy(2)
    objective = cet.NoiseContrastive(cet.GaussianNoise.fit(points, widen=1.5))
    adam = cet.Optimizer(rate=1e-2, betas=(0.9, 0.99), decay=0.7)
    cet.Trainer(
        energy, objective, points, steps=1500, batch_size=512, optimizer=adam
    ).fit()
    return energy


def draw(panel, energy):
    """Draws the density of an energy and 300 samples."""
    axis = torch.linspace(-EXTENT, EXTENT, 241)
    with torch.no_grad():
        density = torch.exp(-energy(torch.cartesian_prod(axis, axis))).view(241, 241).T
    scale = {"vmin": 0, "vmax": density.quantile(0.997), "cmap": SHADES}
    panel.imshow(density, origin="lower", extent=(-EXTENT, EXTENT) * 2, **scale)
    samples = energy.sample((300, 2), sampler="smc", seed=0)
    panel.scatter(*samples.T, s=3, color=DOT, linewidths=0, alpha=0.75)
    panel.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), xticks=[], yticks=[])
    panel.spines[:].set_color("#9fa8da")


def main():
    """Writes the image."""
    torch.set_num_threads(1)
    figure, panels = plt.subplots(2, 3, figsize=(7.2, 5.2), layout="constrained")
    for panel, name in zip(panels.flat, cet.toys.NAMES, strict=True):
        draw(panel, train(name))
        panel.set_title(name, fontfamily="monospace", fontsize=10)
    path = Path(__file__).parent.parent / "img" / "toy-energies.png"
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
