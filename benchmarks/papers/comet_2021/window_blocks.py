"""The blocks about window energies of the page `docs/results/comet-2021.md`, from the file of results."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, format_number, markdown_table
from benchmarks.papers.experiment import COMET

__all__ = ["blocks"]

PICTURES = {
    "renders": "B itself: the accuracy of the classifier",
    "rebuilt": "B, reconstructed without a swap",
    "swapped": "**A with the object of B**",
    "kept": "A's other objects in the swapped pictures",
    "before": "A at that place before the swap",
}


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    return {function.__name__.replace("_", " "): function for function in (window_masks, window_recombination, eight_objects)}


def window_masks() -> str:
    """Returns the table of masks and errors."""
    rows, found = [], _read()
    for row in found["masks"]:
        read = f"{row['read']}, {'none' if row['merge'] is None else format_number(row['merge'], 1)}"
        scores = [f"**{_n(row['FG-ARI'])}** ± {_n(row['s.e.'])}", *(_n(row[name]) for name in ("unmerged", "all-pixel ARI", "mSC"))]
        errors = [_n(row[name], 4) for name in ("error", "large, error", "large, error, 32 pixels")]
        rows.append([str(row["seed"]), f"{row['seconds'] / 60:.1f}", *scores, *errors, read])
    head = ["seed", "minutes of a core", "FG-ARI", "unmerged", "all-pixel ARI", "mSC", "error", "of large solids", "the same, 32 pixels"]
    return markdown_table([*head, "reading, threshold"], rows)


def window_recombination() -> str:
    """Returns the table of recombined pictures."""
    rows = [
        [str(row["seed"]), PICTURES[row["pictures"]], *(_n(row[name]) for name in ("shape", "color", "both"))]
        for row in _read()["recombined"]
        if row["pictures"] in PICTURES
    ]
    return markdown_table(["seed", "pictures", "shape", "color", "both"], rows)


def eight_objects() -> str:
    """Returns the table of eight objects from two pictures of four."""
    names = ("each found", "all found", "as many", "error")
    rows = [[str(row["seed"]), row["pictures"], str(row["pairs"]), *(_n(row[name]) for name in names)] for row in _read()["eight"]]
    return markdown_table(["seed", "pictures", "pairs", "of the objects found", "all eight", "exactly eight", "mean error of places"], rows)


def _n(value: float, digits: int = 3) -> str:
    return format_number(value, digits)


def _read() -> dict[str, Any]:
    return read_json(COMET.results / "window-objects.json")
