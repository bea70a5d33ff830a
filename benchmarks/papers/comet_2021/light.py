r"""Light and objects in one model: the light of one picture on the objects of another.

    python -m benchmarks.papers.comet_2021.light [--seed 6 7] [--write] [--data FOLDER] [--parts FOLDER]

The models are those of the plan `solids-window` of `objects.py`, which trains them if there are none. `fit_common` finds what the objects
of a picture have in common, from 1,000 of the training pictures without their labels. Its threshold was chosen on seed 5.

`CommonCode.swap` gives pictures A the common code and the ground of pictures B, and leaves A's objects. 500 pairs of pictures of three
solids (half widths .16 to .26, seed 3), swapped, and as renders of A's solids under the light of B. Networks that were trained on other
renders evaluate them: a judge of light, with the layers of `composable_energy_scenes.Judge`, by the angle between its direction and that
of the lamp of B (by chance 90 degrees), and the classifier of `recombination.py` at the places of A's solids.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import composable_energy as ce
from benchmarks.harness import kept
from benchmarks.papers.comet_2021.objects import SHOWN, TRAIN, train_plan
from benchmarks.papers.comet_2021.recombination import PICTURES, CropClassifier, centers, classify, load_classifier
from benchmarks.papers.comet_2021.worlds import WORLDS, Budget, Scenes, fit, render_objects, run_experiment
from benchmarks.papers.experiment import arrange_rows
from composable_energy_comet import CommonCode, fit_common
from composable_energy_scenes.judge import Judge, judge_images

WORLD, SCENES, PAIRS = "solids-64", "three-64", 500
FITTED = 1_000


def lights(scenes: Scenes) -> Tensor:
    """Returns the directions of the lamps, cosine and sine, with shape $(N, 2)$."""
    return torch.from_numpy(np.array(scenes.labels["light"])).float()


def angle(found: Tensor, wanted: Tensor) -> float:
    """Returns the mean angle in degrees between directions, each with shape $(N, 2)$."""
    return float(F.cosine_similarity(found, wanted).clamp(-1, 1).acos().rad2deg().mean())


def relight(scenes: Scenes) -> Tensor:
    """Returns renders of pictures with the light and the floor of the next picture, with shape $(N, 3, S, S)$."""
    world, options, _ = WORLDS[SCENES]
    labels = {name: np.array(value) for name, value in scenes.labels.items()}
    labels |= {name: np.roll(labels[name], -1, 0) for name in ("light", "floor")}
    return torch.from_numpy(ce.get("world", world, **options).render(labels).images).float() / 255


def train_judge(parts: Path, data: Path, seconds: float) -> Judge:
    """Returns the judge of light; trains it if it does not exist."""

    def train(judge: Judge) -> None:
        scenes = render_objects(WORLD, PICTURES, "classifier", data)
        truth = lights(scenes)

        def loss(rows: Tensor, step: int) -> Tensor:
            x, mirrored = scenes.images[rows], (torch.rand(len(rows)) < 0.5)[:, None]
            x = torch.where(mirrored[:, :, None, None], x.flip(3), x)
            wanted = torch.where(mirrored, truth[rows] * torch.tensor([-1.0, 1.0]), truth[rows])
            return (judge(x + 0.03 * torch.randn_like(x))[:, 3:5] - wanted).square().sum(1).mean()

        fit(loss, judge.parameters(), len(truth), Budget(seconds, rate=3e-3, batch=64, cosine=True), 0)

    torch.manual_seed(0)
    return kept(parts / "light-judge.pt", Judge(), train)


def measure(common: CommonCode, judge: Judge, classifier: CropClassifier, scenes: Scenes) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Returns a row of figures for each version of pictures, and the pictures themselves, with B as the second."""
    comet, x, other = common.comet, scenes.images, lights(scenes).roll(-1, 0)
    y, row_and_object = x.roll(-1, 0), (scenes.shape >= 0).nonzero(as_tuple=True)
    row, one = row_and_object
    middles = centers(scenes.masks[row] == one[:, None, None] + 1)
    versions = {"swapped": common.swap(x, y), "renders": relight(scenes)}
    shapes, colors = scenes.shape[row_and_object], scenes.color[row_and_object]
    rows: list[dict[str, Any]] = []
    for name, pictures in versions.items():
        light = angle(judge_images(pictures, judge).light, other)
        rows.append({"pictures": name, "light of B": light, **classify(classifier, pictures, row, middles, shapes, colors)})
    return rows, [x, y, comet.decode(comet.encode(x)), *versions.values()]


def run(args: Any) -> Iterator[dict[str, Any]]:
    parts, rows, pictures = args.parts / "objects", [], {}
    images = render_objects(WORLD, TRAIN, "train", args.data).images[:FITTED]
    classifier, judge = load_classifier(WORLD, parts, args.data), train_judge(parts, args.data, args.judges)
    scenes = render_objects(SCENES, PAIRS, "test", args.data)
    for seed in args.seed:
        common = fit_common(train_plan("solids-window", seed, parts, args.data)[0], images)
        found, shown = measure(common, judge, classifier, scenes)
        rows += [{"seed": seed, **row} for row in found]
        pictures = pictures or {"window-light": arrange_rows([some[:SHOWN] for some in shown], 4)}
        yield {"rows": rows, "pictures": pictures}


if __name__ == "__main__":
    run_experiment("light", __doc__, run, seed=[6, 7], judges=150.0)
