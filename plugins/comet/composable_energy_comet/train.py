r"""Trains the model `sprites`, which comes with the package, or one of larger objects, reproducibly from seeds.

    python -m composable_energy_comet.train [--model sprites] --out FOLDER [--steps 6000] [--install]
    python -m composable_energy_comet.train --model objects --out FOLDER [--steps 17000] [--install]

`sprites`: 12,000 pictures of the world `colored-sprites`, averaged to 16 pixels, and the recipe `comet` without its quadratic stage, which
sprites do not need. `objects`: 12,000 pictures of two to four solids of the world `objects` in 64 pixels, and the recipe `comet-window`;
`--steps` are those of both stages. Checkpoints are in FOLDER; after an interruption, the same command resumes. `--install` copies the
model, in half precision, into the package.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import composable_energy as ce
from composable_energy_comet.factory import SHIPPED, load_comet, save_comet
from composable_energy_comet.recipe import comet_recipe, comet_window_recipe
from composable_energy_image.data import Pictures

SIZE, RENDERED, SEED = 16, 32, 1
OBJECTS: dict[str, Any] = {"size": 64, "count": (2, 4), "sizes": (0.16, 0.38)}
"""Options of the world of the model `objects`."""

_COUNT = 12_000
# Options that sprites do not need: the quadratic stage, a fine grid, inhibition, bounded logits, smaller gradients.
_SETTINGS = {"data.size": SIZE, "quadratic.steps": 0, "model.cells": 4, "model.inhibition": False, "model.cap": None, "training.clip": 1.0}
_OBJECTS_SEED = 5  # settings were chosen on seed 0


def pictures(n: int, seed: int) -> Pictures:
    """Returns pictures of `colored-sprites`, rendered at 32 pixels and averaged to 16."""
    rendered = torch.from_numpy(ce.get("world", "colored-sprites", size=RENDERED).draw(n, seed=seed).images)
    return Pictures(F.avg_pool2d(rendered.float(), RENDERED // SIZE).round().byte().numpy(), {}, "colored sprites")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m composable_energy_comet.train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=["sprites", "objects"], default="sprites", help="the model (default: sprites)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for checkpoints and the model")
    parser.add_argument("--steps", type=int, help="training steps (default: 6000 for sprites, those of the recipe for objects)")
    parser.add_argument("--count", type=int, default=_COUNT, help="training pictures (default: 12000)")
    parser.add_argument("--install", action="store_true", help="copy the model into the package")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.model == "sprites":
        recipe = comet_recipe().with_changes({**_SETTINGS, "conv.steps": 6000 if options.steps is None else options.steps})
        drawn = pictures(options.count, SEED)
    else:
        recipe = comet_window_recipe().with_changes({"training.seed": _OBJECTS_SEED})
        recipe = recipe if options.steps is None else recipe.with_steps(options.steps)
        drawn = Pictures(ce.get("world", "objects", **OBJECTS).draw(options.count, seed=SEED).images, {}, "objects")
    folder = recipe.train(drawn, options.out, progress=True)
    if options.install:
        save_comet(load_comet(folder), SHIPPED / options.model, half=True, small_encoder=options.model == "objects")
        shutil.copy(options.out / "report.json", SHIPPED / options.model)
        print(json.loads((options.out / "report.json").read_text()))


if __name__ == "__main__":
    main()
