r"""Eight objects in one picture of 64 pixels, from two pictures of four.

    python -m benchmarks.papers.comet_2021.window_objects [--seed 5 6 7] [--write] [--data FOLDER] [--parts FOLDER]

The models are those of the plan `solids-window` of `objects.py`, which trains them if they do not exist. Pairs of pictures of four small
solids (half widths .16 to .22, seed 3) do not overlap: the ground and the objects of the first are joined with the objects of the second. A
detector of up to eight objects, trained on renders of seed 6, looks for an object within .4 of each place on both axes. The ceiling are
renders of the same solids.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import kept
from benchmarks.papers.comet_2021.objects import SHOWN, train_plan
from benchmarks.papers.comet_2021.worlds import SEEDS, Budget, fit, run_experiment
from benchmarks.papers.compositional_2020.several_objects import scores
from benchmarks.papers.experiment import arrange_rows
from composable_energy.sampling import Noise
from composable_energy_comet import Comet
from composable_energy_image.data import render_to
from composable_energy_scenes import KINDS
from composable_energy_scenes.judge import Detector, detect_objects
from composable_energy_scenes.objects import OUTLINES
from composable_energy_scenes.train_multi_object import DetectionLoss
from composable_energy_training import Batch

Labels = Mapping[str, np.ndarray]
JOINED, PICTURES, SMALL, GAP = 200, 3_000, (0.16, 0.22), 0.06
DETECTOR: Mapping[str, Any] = {"count": (1, 8), "sizes": (0.14, 0.26)}


def separate_pairs(labels: Mapping[str, np.ndarray], n: int, others: Mapping[str, np.ndarray] | None = None) -> Tensor:
    """Returns pairs of pictures whose objects stand apart on the floor, with shape $(P, 2)$; each picture is in one pair at most."""
    (place, reach), (place_b, reach_b) = (_circles(some) for some in (labels, others or labels))
    found, free = [], set(range(len(place_b)))
    for a in range(len(place)):
        if others is None and a not in free:
            continue
        rest = torch.tensor(sorted(free - {a} if others is None else free))
        if not len(rest):
            break
        between = (place[a][None, :, None] - place_b[rest][:, None]).norm(dim=3)
        apart = (between > reach[a][None, :, None] + reach_b[rest][:, None] + GAP).flatten(1).all(1)
        if apart.any():
            b = int(rest[int(apart.int().argmax())])
            found.append((a, b))
            free -= {a, b} if others is None else {b}
        if len(found) == n:
            break
    return torch.tensor(found).view(-1, 2)


def _circles(labels: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Returns the centres of circles around objects on the floor, with shape $(N, K, 2)$, and their radii."""
    box = OUTLINES[labels["shape"]] == KINDS.index("box")
    return torch.from_numpy(np.array(labels["position"])), torch.from_numpy(labels["size"] * np.where(box, np.sqrt(2), 1))


def join_objects(comet: Comet, x: Tensor, y: Tensor, other: Comet | None = None) -> Tensor:
    """Returns the ground and the objects of x with the objects of y, maybe by another model, with shape $(B, 3, S, S)$."""
    return comet.recombine([*comet.decompose(x), *(other or comet).decompose(y)[1:]])


def train_detector(parts: Path, seconds: float, name: str = "detector", options: Mapping[str, Any] = DETECTOR) -> Detector:
    """Returns the detector of up to eight objects; trains it if it does not exist."""

    def train(detector: Detector) -> None:
        scenes, objective = ce.get("world", "objects", **{"size": 64, **options}).draw(8_000, seed=6), DetectionLoss()
        images = torch.from_numpy(scenes.images)
        places = torch.from_numpy(np.where(scenes.labels["present"][..., None], scenes.labels["position"], np.nan)).float().flatten(1)

        def loss(rows: Tensor, step: int) -> Tensor:
            x = images[rows].float() / 255 + 0.03 * torch.randn(len(rows), 3, 64, 64)
            return objective.loss(detector, Batch(x, {"position": places[rows]}, Noise(0, range(len(rows)), step))).value

        fit(loss, detector.parameters(), len(images), Budget(seconds, rate=3e-3, batch=64), 0)

    torch.manual_seed(0)
    return kept(parts / f"{name}.pt", Detector(), train)


@dataclass(frozen=True)
class Joined:
    """Pairs of pictures of $K$ objects that stand apart, with shape $(P, 3, S, S)$, renders of all, and their places, $(P, 2K, 2)$."""

    first: Tensor
    second: Tensor
    rendered: Tensor
    places: Tensor


def render_joined(data: Path, count: int = 4) -> Joined:
    """Renders pairs of pictures of four objects, and all objects of each pair under the light of the first."""
    world = ce.get("world", "objects", size=64, count=(count, count), sizes=SMALL)
    drawn = render_to(data / "four-small-64", world, PICTURES, 3)
    a, b = separate_pairs(drawn.labels, JOINED).unbind(1)
    return render_both(drawn.images[a.numpy()], drawn.images[b.numpy()], drawn.labels, drawn.labels, (a, b), {"sizes": SMALL})


def render_both(
    x: np.ndarray, y: np.ndarray, first: Labels, second: Labels, pairs: tuple[Tensor, Tensor], options: Mapping[str, Any]
) -> Joined:
    """Returns pairs of pictures, and renders of all objects of each under the light of the first."""
    fields = ("present", "position", "size", "shape", "color")
    both = {name: np.concatenate([first[name][pairs[0]], second[name][pairs[1]]], 1) for name in fields}
    count = both["present"].shape[1]
    world = ce.get("world", "objects", **{"size": 64, **options, "count": (count, count)})
    rendered = world.render({**both, **{name: first[name][pairs[0]] for name in ("light", "floor")}}).images
    images = (torch.from_numpy(np.array(some)).float() / 255 for some in (x, y, rendered))
    return Joined(*images, torch.from_numpy(both["position"]))


def find_joined(comet: Comet, detector: Detector, pairs: Joined) -> tuple[list[dict[str, Any]], Tensor]:
    """Returns a row of figures for each kind of picture, and the joined pictures."""
    joined = join_objects(comet, pairs.first, pairs.second)
    found = detect_objects(joined, detector)
    rows = [
        {"pictures": "renders of all eight", **scores(detect_objects(pairs.rendered, detector), pairs.places)},
        {"pictures": "**joined**", **scores(found, pairs.places)},
        {"pictures": "joined, places of another pair", **scores(found, pairs.places.roll(1, 0))},
    ]
    return rows, joined


def run(args: Any) -> Iterator[dict[str, Any]]:
    parts, joins, pictures = args.parts / "objects", [], {}
    detector, fours = train_detector(parts, args.detector), render_joined(args.data)
    for seed in args.seed:
        rows, joined = find_joined(train_plan("solids-window", seed, parts, args.data)[0], detector, fours)
        joins += [{"seed": seed, **row} for row in rows]
        shown = [some[:SHOWN] for some in (fours.first, fours.second, joined, fours.rendered)]
        pictures = pictures or {"window-eight": arrange_rows(shown, 4)}
        yield {"eight": joins, "pictures": pictures}


if __name__ == "__main__":
    run_experiment("window-objects", __doc__, run, seed=SEEDS, detector=150.0)
