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
ROWS = ("16 x 16", "10 %", "blur", "half")
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
    """Draws a row for each instrument that was measured."""
    rows = [row for row in ROWS if f"{row}/truth" in pictures]
    figure, panels = plt.subplots(
        len(rows),
        len(COLUMNS),
        figsize=(9, 1.1 * len(rows) + 0.2),
        layout="constrained",
        squeeze=False,
    )
    for row, line in zip(rows, panels, strict=True):
        for (key, title), panel in zip(COLUMNS.items(), line, strict=True):
            panel.imshow(pictures[f"{row}/{key}"].permute(1, 2, 0).numpy())
            panel.set_xticks([])
            panel.set_yticks([])
            for side in panel.spines.values():
                side.set_visible(False)
            if row == rows[0]:
                panel.set_title(title, fontsize=9)
            if key == "truth":
                panel.set_ylabel(row, fontsize=9)
    figure.savefig(path, dpi=140, pil_kwargs={"quality": 92, "subsampling": 0})
    plt.close(figure)


if __name__ == "__main__":
    draw(load_file(PICTURES), ROOT / "docs" / "img" / "observations.jpg")
