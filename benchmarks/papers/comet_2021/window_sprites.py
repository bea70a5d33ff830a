r"""Sprites of 32 pixels in windows: their masks, and whether recombined sprites keep their shapes.

    python -m benchmarks.papers.comet_2021.window_sprites [--seed 5 6 7] [--write] [--data FOLDER] [--parts FOLDER]

The models are those of the recipe `comet-window` with a window for each sprite, of half the picture. They are trained with the pictures
of `sprites-quadratic`. Settings were chosen on seed 0 and validation pictures. Masks are scored as in `objects.py`, recombined pictures as
in `recombination.py`, by the same classifier.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.papers.comet_2021.objects import TEST, VALIDATION, score
from benchmarks.papers.comet_2021.recombination import PAIRS, draw_pairs, load_classifier, measure, swap_objects
from benchmarks.papers.comet_2021.window_objects import MERGE, SHOWN, sheet, spent, train
from benchmarks.papers.comet_2021.worlds import SEEDS, render_objects, run_experiment
from benchmarks.papers.experiment import arrange_rows, print_table

WORLD, MODEL = "sprites", "sprites-window"
SETTINGS = {"model.components": 4, "model.window": 16, "quadratic.steps": 4_000, "window.steps": 5_000}


def run(args: Any) -> Iterator[dict[str, Any]]:
    parts, masks, runs, pictures = args.parts / "objects", [], [], {}
    test, validation = (render_objects(WORLD, n, split, args.data) for n, split in ((TEST, "test"), (VALIDATION, "validation")))
    scenes, classifier = render_objects(WORLD, 2 * PAIRS, "test", args.data), load_classifier(WORLD, args.classifier, parts, args.data)
    pairs, chance = draw_pairs(scenes, PAIRS), 1 / classifier.shapes / classifier.colors
    for seed in args.seed:
        comet, stages = train(WORLD, seed, parts / f"{MODEL}-{seed}", args.data, SETTINGS)
        masks.append({"plan": MODEL, "seed": seed, "seconds": spent(stages), **score(comet, validation, test)})
        rows = measure(comet, classifier, scenes, pairs, swap_objects(comet, scenes, pairs, MERGE))
        print_table(f"Recombined, seed {seed}; by chance both are right in {chance:.3f}", rows)
        runs.append({"model": MODEL, "seed": seed, "chance": chance, "rows": rows})
        pictures = pictures or {MODEL: arrange_rows(sheet(comet, test.images[:SHOWN]), 4)}
        yield {"masks": masks, "runs": runs, "pictures": pictures}


if __name__ == "__main__":
    run_experiment("window-sprites", __doc__, run, seed=SEEDS, classifier=60.0)
