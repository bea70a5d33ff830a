r"""Four objects from a model that was trained with pictures of one or two.

    python -m benchmarks.papers.comet_2021.four_objects [--seed 5] [--write] [--data FOLDER] [--parts FOLDER]

The model is that of the recipe `comet-window` with two windows, trained with 12,000 pictures of one or two solids (world `two-64`, half
widths .16 to .38, seed 1). No setting was chosen here. Masks are scored as in `objects.py`. Joined pictures are those of
`joined_objects.py`, with two solids each. Renders of all four are reconstructed too, with two windows by attention and two by the second
look of `encode`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.papers.comet_2021.joined_objects import find_joined, render_joined, train_detector
from benchmarks.papers.comet_2021.objects import TEST, TRAIN, VALIDATION, score
from benchmarks.papers.comet_2021.options import experiment_parser
from benchmarks.papers.comet_2021.window_objects import spent, train
from benchmarks.papers.comet_2021.worlds import render_objects
from benchmarks.papers.compositional_2020.several_objects import scores
from benchmarks.papers.experiment import COMET, print_table
from composable_energy_scenes.detector import detect_objects

WORLD = "two-64"
SETTINGS = {"model.components": 3, "quadratic.steps": 4_000, "window.steps": 6_000}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("four-objects", __doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[5])
    parser.add_argument("--detector", type=float, default=150.0, help="seconds of training of the detector")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts, masks, joins = args.parts / "objects", [], []
    test, validation = (render_objects(WORLD, n, split, args.data) for n, split in ((TEST, "test"), (VALIDATION, "validation")))
    detector, pairs = train_detector(parts, args.detector), render_joined(2, args.data)
    for seed in args.seed:
        comet, stages = train(WORLD, seed, parts / f"two-windows-{seed}", args.data, SETTINGS)
        masks.append({"seed": seed, "seconds": spent(stages), **score(comet, validation, test)})
        rows, _ = find_joined(comet, detector, pairs)
        rebuilt = comet.decode(comet.encode(pairs.rendered))
        again = scores(detect_objects(rebuilt, detector), pairs.places)
        rows.append({"pictures": "renders of all four, reconstructed", **again, "pairs": len(rebuilt)})
        joins += [{"seed": seed, **row} for row in rows]
        for title, table in (("Masks", masks), ("Four objects", joins)):
            print_table(f"{title}, to seed {seed}", table)
        if args.write:  # after each seed, so that a stop loses little
            COMET.write("four-objects", {"masks": masks, "four": joins}, train=TRAIN, test=TEST)


if __name__ == "__main__":
    main()
