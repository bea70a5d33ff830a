"""Draws the pictures of the page `viz.md`.

python docs/gallery/viz.py
"""

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

import composable_energy as ce

DOCS = Path(__file__).parent.parent
IMG = DOCS / "img"


def page_names():
    """Returns the names that the blocks of the page define."""
    spec = importlib.util.spec_from_file_location(
        "run_blocks", DOCS / "scripts" / "run_blocks.py"
    )
    run_blocks = importlib.util.module_from_spec(spec)
    sys.modules["run_blocks"] = run_blocks
    spec.loader.exec_module(run_blocks)
    page = DOCS / "viz.md"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(page, folder)
        found = run_blocks.blocks(page)
        for i, block in enumerate(found):  # the pictures are drawn below
            code = block.code.replace('path="', f'path="{folder}/')
            found[i] = run_blocks.Block(code, block.line, block.reason, block.shown)
        return run_blocks.run(page, found)


def draw_plane(names):
    """Draws a density, chains on it, and their energies."""
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    ce.viz.show(names["E"], draws=150, ax=left)
    ce.viz.show(names["E"], trace=names["trace"], chains=3, window=(-4, 4), ax=middle)
    ce.viz.trace(names["trace"], ax=right)
    figure.savefig(IMG / "viz-plane.png", dpi=110)


def draw_terms(names):
    """Draws an explanation and the shares of branches."""
    figure = Figure(figsize=(12, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ce.viz.explanation(names["found"], ax=left)
    ce.viz.shares(names["found"], ax=right)
    figure.savefig(IMG / "viz-terms.png", dpi=110)


def draw_forces(names):
    """Draws the forces of two energies of the plane, and those of COMET's parts."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    ce.viz.forces(names["pull"], window=(-3, 3), ax=left)
    parts, labels = names["comet"].decompose(names["x"]), names["names"]
    ce.viz.forces(parts, names["start"], labels=labels, ax=right)
    figure.savefig(IMG / "viz-forces.png", dpi=110)


def main():
    """Draws all pictures."""
    torch.set_num_threads(1)
    names = page_names()
    ce.viz.grid(names["faces"], columns=4, path=IMG / "viz-grid.jpg")
    draw_plane(names)
    draw_terms(names)
    draw_forces(names)


if __name__ == "__main__":
    main()
