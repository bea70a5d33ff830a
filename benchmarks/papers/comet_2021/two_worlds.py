r"""Objects of two worlds in one picture, from two models that were trained separately: solids, and toys of several solids.

    python -m benchmarks.papers.comet_2021.two_worlds [--seed 5] [--write] [--data FOLDER] [--parts FOLDER]

The model of solids is that of `window_objects.py`. The model of toys has the same recipe and settings, and 12,000 pictures of two to four
pins, trucks, tables and snowmen (world `toys-64`, half widths .22 to .40, seed 1). Neither model saw an object of the other.

Pairs of a picture A of three solids and a picture B of three toys whose objects stand apart (seed 3). `recombine` joins the ground and the
solids of A, energies of one model, with the toys of B, energies of the other. The detector of `joined_objects.py`, trained on solids and
toys in one picture, looks for all six. The ceiling are renders of all six under the light of A, the floor the places of another pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.comet_2021.crop_classifier import LabelledScenes, render_labelled
from benchmarks.papers.comet_2021.joined_objects import Joined, separate_pairs, train_detector
from benchmarks.papers.comet_2021.objects import TEST, TRAIN, VALIDATION, score
from benchmarks.papers.comet_2021.window_objects import SHOWN, WORLD, spent, train
from benchmarks.papers.comet_2021.worlds import WORLDS, read_experiment, render_objects
from benchmarks.papers.compositional_2020.several_objects import scores
from benchmarks.papers.experiment import COMET, arrange_rows, print_table, write_picture
from composable_energy_comet import Comet
from composable_energy_scenes.judge import Detector, detect_objects

SOLIDS, TOYS, BOTH, TRAINED = "three-64", "three-toys-64", "solids-toys-64", "toys-64"
PICTURES, PAIRS = 500, 200
FIELDS = ("present", "position", "size", "shape", "color")


def render_pairs(solids: LabelledScenes, toys: LabelledScenes, n: int) -> Joined:
    """Returns pairs of pictures whose objects stand apart, and renders of all objects of each, under the light of the solids."""
    a, b = separate_pairs(solids.labels, n, toys.labels).unbind(1)
    both = {name: np.concatenate([solids.labels[name][a], toys.labels[name][b]], 1) for name in FIELDS}
    count = both["present"].shape[1]
    world = ce.get("world", "objects", **WORLDS[BOTH][1] | {"count": (count, count)})
    rendered = world.render({**both, **{name: solids.labels[name][a] for name in ("light", "floor")}}).images
    return Joined(solids.images[a], toys.images[b], torch.from_numpy(rendered).float() / 255, torch.from_numpy(both["position"]))


def join_worlds(solids: Comet, toys: Comet, x: Tensor, y: Tensor) -> Tensor:
    """Returns the ground and the objects of x with the objects of y, with shape $(B, 3, S, S)$."""
    return solids.recombine([*solids.decompose(x), *toys.decompose(y)[1:]])


def measure(solids: Comet, toys: Comet, detector: Detector, pairs: Joined) -> tuple[list[dict[str, Any]], Tensor]:
    """Returns a row of figures for each kind of picture, and the joined pictures."""
    joined = join_worlds(solids, toys, pairs.first, pairs.second)
    versions = {"renders": pairs.rendered, "joined": joined, "another pair": joined.roll(1, 0)}
    return [{"pictures": name, **scores(detect_objects(x, detector), pairs.places)} for name, x in versions.items()], joined


def main(arguments: Sequence[str] | None = None) -> None:
    args = read_experiment("two-worlds", __doc__, arguments, seed=[5], judges=150.0)
    parts, masks, joins = args.parts / "objects", [], []
    models = {seed: _train(seed, parts, args.data) for seed in args.seed}
    detector = train_detector(parts, args.judges, "detector-toys", WORLDS[BOTH][1])
    test, validation = (render_objects(TRAINED, n, split, args.data) for n, split in ((TEST, "test"), (VALIDATION, "validation")))
    pairs = render_pairs(render_labelled(SOLIDS, PICTURES, 3, args.data), render_labelled(TOYS, PICTURES, 3, args.data), PAIRS)
    for seed, (solids, toys, seconds) in models.items():
        masks.append({"seed": seed, "seconds": seconds, **score(toys, validation, test)})
        rows, joined = measure(solids, toys, detector, pairs)
        joins += [{"seed": seed, **row, "pairs": len(joined)} for row in rows]
        for title, table in (("Masks of toys", masks), ("Two worlds", joins)):
            print_table(f"{title}, to seed {seed}", table)
        if args.write and seed == args.seed[0]:
            shown = [some[:SHOWN] for some in (pairs.first, pairs.second, joined, pairs.rendered)]
            write_picture(COMET.pictures / "two-worlds.png", arrange_rows(shown, 4))
        if args.write:  # after each seed, so that a stop loses little
            COMET.write("two-worlds", {"masks": masks, "joined": joins}, train=TRAIN, test=TEST, judge_seconds=args.judges)


def _train(seed: int, parts: Path, data: Path) -> tuple[Comet, Comet, float]:
    """Returns the models of solids and of toys, and the seconds of training of the second."""
    toys, stages = train(TRAINED, seed, parts / f"toys-windows-{seed}", data)
    return train(WORLD, seed, parts / f"windows-{seed}", data)[0], toys, spent(stages)


if __name__ == "__main__":
    main()
