"""Draws the densities of the tutorial `plane.md` from the energies defined there.

python docs/gallery/plane.py
"""

import importlib.util
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap

DOCS = Path(__file__).parent.parent
PAPER, INK, DOT = "#ffffff", "#303f9f", "#d84315"
SHADES = LinearSegmentedColormap.from_list("shades", [PAPER, "#c5cae9", "#7986cb", INK])


def tutorial():
    """Returns the names that the blocks of the tutorial define."""
    spec = importlib.util.spec_from_file_location(
        "run_blocks", DOCS / "scripts" / "run_blocks.py"
    )
    run_blocks = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["run_blocks"] = run_blocks
    spec.loader.exec_module(run_blocks)
    page = DOCS / "tutorials" / "plane.md"
    return run_blocks.run(page, run_blocks.blocks(page))


def draw(energies, path, draws=220, extent=3.6):
    """Draws a row of densities with samples of each."""
    axis = torch.linspace(-extent, extent, 241)
    grid = torch.cartesian_prod(axis, axis)
    figure, panels = plt.subplots(
        1, len(energies), figsize=(2.2 * len(energies), 2.45), layout="constrained"
    )
    for panel, (title, energy) in zip(panels, energies.items(), strict=True):
        density = torch.softmax(-energy(grid), 0).reshape(len(axis), -1).T
        panel.imshow(
            density,
            origin="lower",
            extent=(-extent, extent) * 2,
            cmap=SHADES,
            vmin=0,
            vmax=density.max() * 1.05,
        )
        points = energy.sample((draws, 2), seed=0, steps=300)
        panel.scatter(*points.T, s=3, color=DOT, linewidths=0, alpha=0.75)
        panel.set(xlim=(-extent, extent), ylim=(-extent, extent), xticks=[], yticks=[])
        panel.set_title(title, fontfamily="monospace", fontsize=9.5)
        panel.spines[:].set_color("#9fa8da")
    figure.savefig(DOCS / "img" / path, dpi=160)
    plt.close(figure)


if __name__ == "__main__":
    names = tutorial()
    shapes = {
        "bar": "bar",
        "ring": "ring",
        "bar & ring": "both",
        "bar | ring": "either",
        "ring & ~bar": "without",
    }
    draw({title: names[name] for title, name in shapes.items()}, "plane-shapes.png")
    events = {
        "right": "right",
        "near": "near",
        "right & ~near": "outside_right",
        "right >> near": "if_right_then_near",
        "right xor near": "one_of_them",
    }
    draw({title: names[name] for title, name in events.items()}, "plane-events.png")
