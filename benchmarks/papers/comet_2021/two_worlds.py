r"""Objects of two worlds in one picture, from two models that were trained separately: solids, and toys of several solids.

    python -m benchmarks.papers.comet_2021.two_worlds [--seed 5] [--write] [--data FOLDER] [--parts FOLDER]

The model of solids is that of `window_objects.py`. The model of toys has the same recipe and settings, and 12,000 pictures of two to four
pins, trucks, tables and snowmen (world `toys-64`, half widths .22 to .40, seed 1). Neither model saw an object of the other.

Pairs of a picture A of three solids and a picture B of three toys whose objects stand apart (seed 3). `recombine` joins the ground and the
solids of A, energies of one model, with the toys of B, energies of the other. Networks that were trained on other renders, of solids and
toys in one picture, evaluate them:

- the classifier of `crop_classifier.py` at the places of objects: shapes, among seven, and colors;
- the detector of `joined_objects.py`: whether all six objects are found, and the mean error of their places.

The ceiling are renders of all six objects under the light of A; floors are A alone at the places of B's toys, the places of another
pair, and toys that the model of solids reconstructs, though it saw none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.comet_2021.crop_classifier import CropClassifier, LabelledScenes, centers, classify, load_classifier, render_labelled
from benchmarks.papers.comet_2021.joined_objects import separate_pairs, train_detector
from benchmarks.papers.comet_2021.objects import TEST, TRAIN, VALIDATION, score
from benchmarks.papers.comet_2021.options import experiment_parser
from benchmarks.papers.comet_2021.window_objects import SHOWN, WORLD, errors, spent, train
from benchmarks.papers.comet_2021.worlds import WORLDS, render_objects
from benchmarks.papers.compositional_2020.several_objects import scores
from benchmarks.papers.experiment import COMET, arrange_rows, print_table, write_picture
from composable_energy_comet import Comet
from composable_energy_scenes.detector import Detector, detect_objects

SOLIDS, TOYS, BOTH, TRAINED = "three-64", "three-toys-64", "solids-toys-64", "toys-64"
PICTURES, PAIRS = 500, 200
FIELDS = ("present", "position", "size", "shape", "color")


@dataclass(frozen=True)
class Pairs:
    """Pictures of solids and of toys, and renders of all their objects."""

    solids: Tensor  # pictures of $k$ solids, with shape $(P, 3, S, S)$
    toys: Tensor
    rendered: Tensor  # renders of all, under the light and on the floor of the solids
    places: Tensor  # places on the floor, with shape $(P, 2 k, 2)$, the solids first
    pixels: Tensor  # rows and columns of the middles of objects, with the same shape; -1 for hidden objects
    shape: Tensor
    color: Tensor


def render_pairs(solids: LabelledScenes, toys: LabelledScenes, n: int) -> Pairs:
    """Returns pairs of pictures whose objects stand apart, and renders of all objects of each."""
    a, b = separate_pairs(solids.labels, n, toys.labels).unbind(1)
    both = {name: np.concatenate([solids.labels[name][a], toys.labels[name][b]], 1) for name in FIELDS}
    count = both["present"].shape[1]
    world = ce.get("world", "objects", **WORLDS[BOTH][1] | {"count": (count, count)})
    rendered = world.render({**both, **{name: solids.labels[name][a] for name in ("light", "floor")}}).images
    return Pairs(
        solids.images[a],
        toys.images[b],
        torch.from_numpy(rendered).float() / 255,
        torch.from_numpy(both["position"]),
        torch.cat([_middles(solids, a), _middles(toys, b)], 1),
        torch.from_numpy(both["shape"]).long(),
        torch.from_numpy(both["color"]).long(),
    )


def join_worlds(solids: Comet, toys: Comet, x: Tensor, y: Tensor) -> Tensor:
    """Returns the ground and the objects of x with the objects of y, with shape $(B, 3, S, S)$."""
    return solids.recombine([*solids.decompose(x), *toys.decompose(y)[1:]])


def measure(
    models: tuple[Comet, Comet], classifier: CropClassifier, detector: Detector, pairs: Pairs
) -> tuple[list[dict[str, Any]], Tensor]:
    """Returns a row of figures for each kind of picture, and the joined pictures."""
    solids, toys = models
    x, y = pairs.solids, pairs.toys
    joined, half = join_worlds(solids, toys, x, y), pairs.shape.shape[1] // 2
    rebuilt = solids.decode(solids.encode(x)), toys.decode(toys.encode(y)), solids.decode(solids.encode(y))
    versions: dict[str, tuple[Tensor | None, Tensor | None, Tensor | None]] = {  # for solids, for toys, for the detector
        "apart": (x, y, None),
        "rebuilt": (rebuilt[0], rebuilt[1], None),
        "renders": (pairs.rendered, pairs.rendered, pairs.rendered),
        "joined": (joined, joined, joined),
        "before": (None, x, x),
        "strange": (None, rebuilt[2], None),
        "another pair": (joined.roll(1, 0), joined.roll(1, 0), joined.roll(1, 0)),
    }
    rows = []
    for name, (for_solids, for_toys, for_all) in versions.items():
        row: dict[str, Any] = {"pictures": name}
        for kind, pictures, some in (("solids", for_solids, slice(0, half)), ("toys", for_toys, slice(half, None))):
            if pictures is not None:
                where, one = (pairs.pixels[:, some, 0] >= 0).nonzero(as_tuple=True)
                told = (part[:, some][where, one] for part in (pairs.pixels, pairs.shape, pairs.color))
                row |= {f"{part} of {kind}": value for part, value in classify(classifier, pictures, where, *told).items()}
        rows.append({**row, **({} if for_all is None else scores(detect_objects(for_all, detector), pairs.places))})
    return rows, joined


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("two-worlds", __doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[5])
    parser.add_argument("--judges", type=float, default=150.0, help="seconds of training of each network that evaluates pictures")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts, masks, joins = args.parts / "objects", [], []
    models = {seed: _train(seed, parts, args.data) for seed in args.seed}
    classifier = load_classifier(BOTH, args.judges, parts, args.data)
    detector = train_detector(parts, args.judges, "detector-toys", WORLDS[BOTH][1])
    test, validation = (render_objects(TRAINED, n, split, args.data) for n, split in ((TEST, "test"), (VALIDATION, "validation")))
    pairs = render_pairs(render_labelled(SOLIDS, PICTURES, 3, args.data), render_labelled(TOYS, PICTURES, 3, args.data), PAIRS)
    for seed, (solids, toys, seconds) in models.items():
        masks.append({"seed": seed, "seconds": seconds, **score(toys, validation, test), **errors(toys, test)})
        rows, joined = measure((solids, toys), classifier, detector, pairs)
        joins += [{"seed": seed, **row, "pairs": len(joined)} for row in rows]
        for title, table in (("Masks of toys", masks), ("Two worlds", joins)):
            print_table(f"{title}, to seed {seed}", table)
        if args.write and seed == args.seed[0]:
            shown = [some[:SHOWN] for some in (pairs.solids, pairs.toys, joined, pairs.rendered)]
            write_picture(COMET.pictures / "two-worlds.png", arrange_rows(shown, 4))
        if args.write:  # after each seed, so that a stop loses little
            COMET.write("two-worlds", {"masks": masks, "joined": joins}, train=TRAIN, test=TEST, judge_seconds=args.judges)


def _train(seed: int, parts: Path, data: Path) -> tuple[Comet, Comet, float]:
    """Returns the models of solids and of toys, and the seconds of training of the second."""
    toys, stages = train(TRAINED, seed, parts / f"toys-windows-{seed}", data)
    return train(WORLD, seed, parts / f"windows-{seed}", data)[0], toys, spent(stages)


def _middles(scenes: LabelledScenes, rows: Tensor) -> Tensor:
    """Returns the middles of the objects of pictures, with shape $(P, K, 2)$; -1 for hidden objects."""
    masks, count = scenes.masks[rows], scenes.shape.shape[1]
    found = torch.full((len(rows), count, 2), -1)
    for k in range(count):
        seen = scenes.shape[rows, k] >= 0
        found[seen, k] = centers(masks[seen] == k + 1)
    return found


if __name__ == "__main__":
    main()
