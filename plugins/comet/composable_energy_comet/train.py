r"""Trains the model `sprites`, reproducibly from seeds.

    python -m composable_energy_comet.train --out FOLDER [--steps 6000] [--install]

It renders 12,000 pictures of the world `colored-sprites`, averages them to 16 pixels, and trains the recipe `comet` without its quadratic
stage, which sprites do not need. Checkpoints are in FOLDER; after an interruption, the same command resumes. `--install` copies the model,
in half precision, into the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

import composable_energy as ce
from composable_energy_comet.factory import SHIPPED, load_comet, save_comet
from composable_energy_comet.recipe import comet_recipe
from composable_energy_image.data import Pictures

__all__ = ["main", "pictures"]

SIZE, RENDERED, SEED = 16, 32, 1
_COUNT = 12_000
# Options that sprites do not need: the quadratic stage, a fine grid, inhibition, bounded logits, smaller gradients.
_SETTINGS = {"data.size": SIZE, "quadratic.steps": 0, "model.cells": 4, "model.inhibition": False, "model.cap": None, "training.clip": 1.0}


def pictures(n: int, seed: int) -> Pictures:
    """Returns pictures of `colored-sprites`, rendered at 32 pixels and averaged to 16.

    Args:
        n: Number of pictures.
        seed: Seed of the world.
    """
    rendered = torch.from_numpy(ce.get_world("colored-sprites", size=RENDERED).draw(n, seed=seed).images)
    small = F.avg_pool2d(rendered.float(), RENDERED // SIZE).round().byte()
    return Pictures(small.numpy(), {}, "colored sprites")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: The arguments; those of the command line if None.
    """
    parser = argparse.ArgumentParser(prog="python -m composable_energy_comet.train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for checkpoints and the model")
    parser.add_argument("--steps", type=int, default=6000, help="training steps (default: 6000)")
    parser.add_argument("--count", type=int, default=_COUNT, help="training pictures (default: 12000)")
    parser.add_argument("--install", action="store_true", help="copy the model into the package")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = comet_recipe().with_changes({**_SETTINGS, "conv.steps": options.steps})
    folder = recipe.train(pictures(options.count, SEED), options.out, progress=True)
    if options.install:
        save_comet(load_comet(folder), SHIPPED / "sprites", half=True)
        shutil.copy(options.out / "report.json", SHIPPED / "sprites")
        print(json.loads((options.out / "report.json").read_text()))


if __name__ == "__main__":
    main()
