r"""Objects of 64 pixels: energies that are painted in windows, their masks and recombinations, and eight objects in one picture.

    python -m benchmarks.papers.comet_2021.window_objects [--seed 5 6 7] [--write] [--data FOLDER] [--parts FOLDER]

The models are those of the recipe `comet-window`, trained with 12,000 pictures of two to four solids with shadows (world `solids-64`, half
widths .16 to .38, seed 1). Settings were chosen on seed 0. Models that exist are used again.

- **Masks**: as in `objects.py`, on 320 pictures of seed 3; the reading is chosen on 128 pictures of seed 2.
- **Recombination**: as in `recombination.py`, 500 pairs of seed 3, with a classifier of 31 x 31 crops.
- **Eight objects**: those of two pictures of four small solids; see `joined_objects.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.joined_objects import find_joined, render_joined, train_detector
from benchmarks.papers.comet_2021.objects import TEST, TRAIN, VALIDATION, score, segmentation_baselines
from benchmarks.papers.comet_2021.recombination import PAIRS, draw_pairs, load_classifier, measure, swap_objects
from benchmarks.papers.comet_2021.worlds import SEEDS, render_objects, run_experiment
from benchmarks.papers.experiment import arrange_rows
from composable_energy_comet import Comet, load_comet
from composable_energy_comet.recipe import comet_window_recipe
from composable_energy_image.data import Pictures

WORLD = "solids-64"
MERGE = 0.6
COLORS = torch.tensor([[5, 5, 5], [9, 3, 2], [2, 6, 9], [3, 8, 3], [9, 8, 2], [7, 4, 9], [9, 6, 4]]) / 10
SHOWN = 6


def train(world: str, seed: int, folder: Path, data: Path, changes: Mapping[str, Any] | None = None) -> tuple[Comet, dict[str, Any]]:
    """Returns a model of `comet-window` and the report of its training; trains it if it does not exist."""
    if not (folder / "report.json").exists():
        pictures = Pictures(render_objects(world, TRAIN, "train", data).images.mul(255).round().byte().numpy(), {}, folder.name)
        comet_window_recipe().with_changes({**(changes or {}), "training.seed": seed}).train(pictures, folder, progress=True)
    return load_comet(folder / "comet"), read_json(folder / "report.json")["stages"]


def spent(stages: Mapping[str, Mapping[str, float]]) -> float:
    """Returns the processor seconds of all stages of a training."""
    return sum(stage["cpu_seconds"] for stage in stages.values())


def sheet(comet: Comet, x: Tensor) -> list[Tensor]:
    """Returns rows: pictures, reconstructions, masks, the ground, each part of the attention on it, and all further windows on it."""
    z, first = comet.encode(x), comet.encoder.components
    masks = COLORS[comet.masks(x)].movedim(3, 1)
    shown = [[0], *([0, k] for k in range(1, first)), [0, *range(first, comet.components)]]
    return [x, comet.decode(z), masks, *(comet.decode(z[:, some]) for some in shown)]


def run(args: Any) -> Iterator[dict[str, Any]]:
    """Yields the figures after each seed."""
    parts, pictures = args.parts / "objects", {}
    test, validation = (render_objects(WORLD, n, split, args.data) for n, split in ((TEST, "test"), (VALIDATION, "validation")))
    labelled = render_objects(WORLD, 2 * PAIRS, "test", args.data)
    classifier, detector = load_classifier(WORLD, args.classifier, parts, args.data), train_detector(parts, args.classifier)
    pairs, masks, swaps, joins = draw_pairs(labelled, PAIRS), [], [], []
    baselines, fours = segmentation_baselines(test), render_joined(args.data)
    for seed in args.seed:
        comet, stages = train(WORLD, seed, parts / f"windows-{seed}", args.data)
        masks.append({"seed": seed, "seconds": spent(stages), **score(comet, validation, test)})
        mixed = swap_objects(comet, labelled, pairs, MERGE)
        swaps += [{"seed": seed, **row} for row in measure(comet, classifier, labelled, pairs, mixed)]
        rows, joined = find_joined(comet, detector, fours)
        joins += [{"seed": seed, **row} for row in rows]
        shown = [some[:SHOWN] for some in (fours.first, fours.second, joined, fours.rendered)]
        pictures = pictures or {"window-eight": arrange_rows(shown, 4)}
        yield {"baselines": baselines, "masks": masks, "recombined": swaps, "eight": joins, "pictures": pictures}


if __name__ == "__main__":
    run_experiment("window-objects", __doc__, run, seed=SEEDS, classifier=150.0)
