"""Draws the training curves of the long runs and their final chains.

python docs/gallery/training.py
"""

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RUNS = {
    "monitored": ("contrastive divergence", "#303f9f"),
    "improved": ("Improved CD", "#d84315"),
    "jem": ("JEM", "#00796b"),
}


def main():
    """Writes the image."""
    results = json.loads((RESULTS / "contrastive.json").read_text())
    figure, (curve, *sheets) = plt.subplots(
        1, 4, figsize=(14, 3.6), width_ratios=[1.2, 1, 1, 1], layout="constrained"
    )
    for run, (name, color) in RUNS.items():
        rows = [row for row in results[run] if row["step"]]
        minutes = [row["seconds"] / 60 for row in rows]
        curve.plot(
            minutes,
            [row["frechet"] for row in rows],
            "o-",
            ms=3,
            color=color,
            label=name,
        )
    curve.set(xlabel="minutes of one core", ylabel="Frechet distance", yscale="log")
    curve.legend(frameon=False)
    curve.spines[["top", "right"]].set_visible(False)
    for sheet, (run, (name, _)) in zip(sheets, RUNS.items(), strict=True):
        sheet.imshow(Image.open(RESULTS / f"contrastive-{run}.png"))
        sheet.set_title(f"chains of {name}", fontsize=10)
        sheet.axis("off")
    figure.savefig(Path(__file__).parent.parent / "img" / "training.png", dpi=110)


if __name__ == "__main__":
    main()
