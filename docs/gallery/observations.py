"""Draws measured faces, posteriors and baselines: the first truth of the benchmark.

python -m benchmarks.observations --write
python docs/gallery/observations.py
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "benchmarks" / "results" / "observations.safetensors"
ROWS = ("half", "16 x 16", "blur", "10 %")
COLUMNS = {
    "truth": "truth",
    "y": "measured",
    "draw 0": "draw",
    "draw 1": "draw",
    "draw 2": "draw",
    "mean": "mean",
    "spread": "spread x 4",
    "dps": "DPS",
    "projection": "projection",
}


def draw(pictures, path):
    """Draws a row for each instrument."""
    figure, panels = plt.subplots(
        len(ROWS), len(COLUMNS), figsize=(9, 4.3), layout="constrained"
    )
    for row, line in zip(ROWS, panels, strict=True):
        for (key, title), panel in zip(COLUMNS.items(), line, strict=True):
            panel.imshow(pictures[f"{row}/{key}"].permute(1, 2, 0).numpy())
            panel.set_xticks([])
            panel.set_yticks([])
            for side in panel.spines.values():
                side.set_visible(False)
            if row == ROWS[0]:
                panel.set_title(title, fontsize=9)
            if key == "truth":
                panel.set_ylabel(row, fontsize=9)
    figure.savefig(path, dpi=140, pil_kwargs={"quality": 92, "subsampling": 0})
    plt.close(figure)


if __name__ == "__main__":
    draw(load_file(PICTURES), ROOT / "docs" / "img" / "observations.jpg")
