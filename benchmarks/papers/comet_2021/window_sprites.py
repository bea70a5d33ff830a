r"""Sprites of 32 pixels in windows: their masks, and whether recombined sprites keep their shapes.

    python -m benchmarks.papers.comet_2021.window_sprites [--seed 5 6 7] [--write] [--data FOLDER] [--parts FOLDER]

The models are those of the recipe `comet-window` with a window for each sprite, of half the picture. They are trained with the pictures
of `sprites-quadratic`. Settings were chosen on seed 0 and validation pictures. Masks are scored as in `objects.py`, recombined pictures as
in `recombination.py`, by the same classifier.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.papers.comet_2021.crop_classifier import load_classifier, render_labelled
from benchmarks.papers.comet_2021.objects import TEST, TRAIN, VALIDATION, score
from benchmarks.papers.comet_2021.recombination import PAIRS, draw_pairs, measure, swap_objects
from benchmarks.papers.comet_2021.window_objects import MERGE, SHOWN, sheet, spent, train
from benchmarks.papers.comet_2021.worlds import SEEDS, read_experiment, render_objects
from benchmarks.papers.experiment import COMET, arrange_rows, print_table, write_picture

WORLD, MODEL = "sprites", "sprites-window"
SETTINGS = {"model.components": 4, "model.window": 16, "quadratic.steps": 4_000, "window.steps": 5_000}


def main(arguments: Sequence[str] | None = None) -> None:
    args = read_experiment("window-sprites", __doc__, arguments, seed=SEEDS, classifier=60.0)
    parts, masks, runs = args.parts / "objects", [], []
    test, validation = (render_objects(WORLD, n, split, args.data) for n, split in ((TEST, "test"), (VALIDATION, "validation")))
    scenes, classifier = render_labelled(WORLD, 2 * PAIRS, 3, args.data), load_classifier(WORLD, args.classifier, parts, args.data)
    pairs, chance = draw_pairs(scenes, PAIRS), 1 / classifier.shapes / classifier.colors
    for seed in args.seed:
        comet, stages = train(WORLD, seed, parts / f"{MODEL}-{seed}", args.data, SETTINGS)
        masks.append({"plan": MODEL, "seed": seed, "seconds": spent(stages), **score(comet, validation, test)})
        mixed = swap_objects(comet, scenes, pairs, MERGE)
        runs.append({"model": MODEL, "seed": seed, "chance": chance, "rows": measure(comet, classifier, scenes, pairs, mixed)})
        print_table(f"Masks, to seed {seed}", masks)
        print_table(f"Recombined, seed {seed}; by chance both are right in {chance:.3f}", runs[-1]["rows"])
        if args.write and seed == args.seed[0]:
            write_picture(COMET.pictures / f"{MODEL}.png", arrange_rows(sheet(comet, test.images[:SHOWN]), 4))
        if args.write:  # after each seed, so that a stop loses little
            figures = {"masks": masks, "runs": runs}
            COMET.write("window-sprites", figures, train=TRAIN, test=TEST, pairs=PAIRS, classifier_seconds=args.classifier)


if __name__ == "__main__":
    main()
