r"""Objects of 64 pixels: energies that are painted in windows, their masks, errors and recombinations, and eight objects in one picture.

    python -m benchmarks.papers.comet_2021.window_objects [--seed 5 6 7] [--write] [--data FOLDER] [--parts FOLDER]

The models are those of the recipe `comet-window`, trained with 12,000 pictures of two to four solids with shadows (world `solids-64`, half
widths .16 to .38, seed 1). Settings were chosen on seed 0. Models that exist are used again.

- **Masks**: as in `objects.py`, on 320 pictures of seed 3; the reading is chosen on 128 pictures of seed 2. `large` are the solids of
  `objects.py`, half widths .26 to .38, in 64 pixels; `large, 32 pixels` is the error of its pictures and reconstructions averaged to 32.
- **Recombination**: as in `recombination.py`, 500 pairs of seed 3, with a classifier of 31 x 31 crops.
- **Eight objects**: pairs of pictures of four small solids (half widths .16 to .22) whose eight solids do not overlap; the ground and the
  objects of the first are joined with the objects of the second. A detector of up to eight objects, trained on renders of seed 6, looks
  for an object within .4 of each place on both axes. Its ceiling are renders of the same solids, its floor the places of another pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import composable_energy as ce
from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.crop_classifier import load_classifier, render_labelled
from benchmarks.papers.comet_2021.objects import TEST, TRAIN, VALIDATION, score
from benchmarks.papers.comet_2021.options import experiment_parser
from benchmarks.papers.comet_2021.recombination import PAIRS, draw_pairs, measure, swap_objects
from benchmarks.papers.comet_2021.segmentation import segmentation_baselines
from benchmarks.papers.comet_2021.training import Budget, fit
from benchmarks.papers.comet_2021.worlds import Scenes, render_objects
from benchmarks.papers.compositional_2020.several_objects import scores
from benchmarks.papers.experiment import COMET, arrange_rows, print_table, write_picture
from composable_energy.sampling import Noise
from composable_energy_comet import Comet, load_comet
from composable_energy_comet.recipe import comet_window_recipe
from composable_energy_image.data import Pictures, render_to
from composable_energy_scenes.detector import DetectionLoss, Detector, detect_objects
from composable_energy_training import Batch

__all__ = ["WORLD", "find_eight", "join_eight", "render_eights", "separate_pairs", "train", "train_detector"]

WORLD, LARGE = "solids-64", "objects-64"
MERGE = 0.6
EIGHT, FOURS, SMALL, GAP = 200, 3_000, (0.16, 0.22), 0.06
COLORS = torch.tensor([[5, 5, 5], [9, 3, 2], [2, 6, 9], [3, 8, 3], [9, 8, 2], [7, 4, 9], [9, 6, 4]]) / 10
SHOWN = 6
DETECTOR = {"count": (1, 8), "sizes": (0.14, 0.26)}


def train(seed: int, parts: Path, data: Path) -> tuple[Comet, dict[str, Any]]:
    """Returns the model of a seed and the report of its training; trains it if it does not exist."""
    folder = parts / f"windows-{seed}"
    if not (folder / "report.json").exists():
        images = render_objects(WORLD, TRAIN, "train", data).images
        pictures = Pictures(images.mul(255).round().byte().numpy(), {}, WORLD)
        comet_window_recipe().with_changes({"training.seed": seed}).train(pictures, folder, progress=True)
    return load_comet(folder / "comet"), read_json(folder / "report.json")["stages"]


def errors(comet: Comet, test: Scenes) -> dict[str, float]:
    """Returns the mean squared error of reconstructions, in all pixels and after both are averaged to 32."""
    rebuilt = comet.decode(comet.encode(test.images))
    small = F.avg_pool2d(rebuilt, 2) - F.avg_pool2d(test.images, 2)
    return {"error": float((rebuilt - test.images).square().mean()), "error, 32 pixels": float(small.square().mean())}


def separate_pairs(labels: Mapping[str, np.ndarray], n: int) -> Tensor:
    """Returns pairs of pictures whose objects stand apart on the floor, with shape $(P, 2)$; each picture is in one pair at most.

    Args:
        labels: Labels of pictures of the world `objects`.
        n: The largest number of pairs.
    """
    box = labels["shape"] == ce.get_world("objects").fields["shape"].values.index("box")
    place, reach = torch.from_numpy(labels["position"]), torch.from_numpy(labels["size"] * np.where(box, np.sqrt(2), 1))
    found, free = [], set(range(len(place)))
    for a in range(len(place)):
        if a not in free:
            continue
        others = torch.tensor(sorted(free - {a}))
        if not len(others):
            break
        between = (place[a][None, :, None] - place[others][:, None]).norm(dim=3)
        apart = (between > reach[a][None, :, None] + reach[others][:, None] + GAP).flatten(1).all(1)
        if apart.any():
            b = int(others[int(apart.int().argmax())])
            found.append((a, b))
            free -= {a, b}
        if len(found) == n:
            break
    return torch.tensor(found).view(-1, 2)


def join_eight(comet: Comet, x: Tensor, y: Tensor) -> Tensor:
    """Returns the ground and the objects of x with the objects of y, with shape $(B, 3, S, S)$."""
    return comet.recombine([*comet.decompose(x), *comet.decompose(y)[1:]])


def train_detector(parts: Path, seconds: float) -> Detector:
    """Returns the detector of up to eight objects; trains it if it does not exist."""
    path, detector = parts / "detector.pt", Detector()
    if not path.exists():
        scenes = ce.get_world("objects", size=64, **DETECTOR).draw(8_000, seed=6)
        images = torch.from_numpy(scenes.images)
        places = torch.from_numpy(np.where(scenes.labels["present"][..., None], scenes.labels["position"], np.nan)).float().flatten(1)
        torch.manual_seed(0)
        detector, objective = Detector().train(), DetectionLoss()

        def loss(rows: Tensor, step: int) -> Tensor:
            x = images[rows].float() / 255 + 0.03 * torch.randn(len(rows), 3, 64, 64)
            return objective.loss(detector, Batch(x, {"position": places[rows]}, Noise(0, range(len(rows)), step))).value

        fit(loss, detector.parameters(), len(images), Budget(seconds, rate=3e-3, batch=64), 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(detector.state_dict(), path)
    detector.load_state_dict(torch.load(path))
    return detector.eval()


@dataclass(frozen=True)
class Eights:
    """Pairs of pictures of four objects that stand apart, with shape $(P, 3, S, S)$, renders of all eight, and places, $(P, 8, 2)$."""

    first: Tensor
    second: Tensor
    rendered: Tensor
    places: Tensor


def render_eights(data: Path) -> Eights:
    """Renders pairs of pictures of four objects, and the eight objects of each pair under the light of the first."""
    drawn = render_to(data / "four-small-64", ce.get_world("objects", size=64, count=(4, 4), sizes=SMALL), FOURS, 3)
    a, b = separate_pairs(drawn.labels, EIGHT).unbind(1)
    fields = ("present", "position", "size", "shape", "color")
    both = {name: np.concatenate([drawn.labels[name][a], drawn.labels[name][b]], 1) for name in fields}
    labels = {**both, "light": drawn.labels["light"][a], "floor": drawn.labels["floor"][a]}
    rendered = ce.get_world("objects", size=64, count=(8, 8), sizes=SMALL).render(labels).images
    x, y, rendered = (
        torch.from_numpy(np.array(some)).float() / 255 for some in (drawn.images[a.numpy()], drawn.images[b.numpy()], rendered)
    )
    return Eights(x, y, rendered, torch.from_numpy(both["position"]))


def find_eight(comet: Comet, detector: Detector, eights: Eights) -> tuple[list[dict[str, Any]], Tensor]:
    """Returns a row of figures for each kind of picture, and the joined pictures."""
    joined = join_eight(comet, eights.first, eights.second)
    found = detect_objects(joined, detector)
    rows = [
        {"pictures": "renders of all eight", **scores(detect_objects(eights.rendered, detector), eights.places)},
        {"pictures": "**joined**", **scores(found, eights.places)},
        {"pictures": "joined, places of another pair", **scores(found, eights.places.roll(1, 0))},
    ]
    return [{**row, "pairs": len(joined)} for row in rows], joined


def sheet(comet: Comet, x: Tensor) -> list[Tensor]:
    """Returns rows: pictures, reconstructions, masks, the ground, each part of the attention on it, and all further windows on it."""
    z, first = comet.encode(x), comet.encoder.components
    masks = COLORS[comet.masks(x)].movedim(3, 1)
    shown = [[0], *([0, k] for k in range(1, first)), [0, *range(first, comet.components)]]
    return [x, comet.decode(z), masks, *(comet.decode(z[:, some]) for some in shown)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("window-objects", __doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[5, 6, 7])
    parser.add_argument("--classifier", type=float, default=150.0, help="seconds of training of the classifier, and of the detector")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts = args.parts / "objects"
    test, large = (render_objects(world, TEST, "test", args.data) for world in (WORLD, LARGE))
    validation = render_objects(WORLD, VALIDATION, "validation", args.data)
    labelled = render_labelled(WORLD, 2 * PAIRS, 3, args.data)
    classifier, detector = load_classifier(WORLD, args.classifier, parts, args.data), train_detector(parts, args.classifier)
    pairs, masks, swaps, joins = draw_pairs(labelled, PAIRS), [], [], []
    baselines, eights = segmentation_baselines(test), render_eights(args.data)
    print_table("Baselines", [baselines])
    for seed in args.seed:
        comet, stages = train(seed, parts, args.data)
        seconds = sum(stage["cpu_seconds"] for stage in stages.values())
        on_large = {f"large, {name}": value for name, value in errors(comet, large).items()}
        masks.append({"seed": seed, "seconds": seconds, **score(comet, validation, test), **errors(comet, test), **on_large})
        mixed = swap_objects(comet, labelled, pairs, MERGE)
        swaps += [{"seed": seed, **row} for row in measure(comet, classifier, labelled, pairs, mixed)]
        rows, joined = find_eight(comet, detector, eights)
        joins += [{"seed": seed, **row} for row in rows]
        for title, table in (("Masks", masks), ("Recombined", swaps), ("Eight objects", joins)):
            print_table(f"{title}, to seed {seed}", table)
        if args.write and seed == args.seed[0]:
            recombined = (labelled.images[pairs.a], labelled.images[pairs.b], mixed)
            pictures = {"window-objects": sheet(comet, test.images[:SHOWN]), "window-recombined": recombined}
            pictures["window-eight"] = (eights.first, eights.second, joined, eights.rendered)
            for name, rows_of in pictures.items():
                write_picture(COMET.pictures / f"{name}.png", arrange_rows([row[:SHOWN] for row in rows_of], 4))
    if args.write:
        figures = {"baselines": baselines, "masks": masks, "recombined": swaps, "eight": joins}
        COMET.write("window-objects", figures, train=TRAIN, test=TEST, pairs=PAIRS, classifier_seconds=args.classifier)


if __name__ == "__main__":
    main()
