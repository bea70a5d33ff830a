r"""Objects without labels: how well the masks of components match those of the objects, on five worlds, beside baselines.

    python -m benchmarks.papers.comet_2021.objects [--only sprites-conv] [--seed 5] [--write] [--data FOLDER] [--parts FOLDER]

It trains and scores models in one thread, by default all of them for seeds 5, 6 and 7; weights and figures go to the folder of parts, and
existing ones are used again.

- **Data**: 12,000 training pictures (seed 1), 128 pictures that choose how masks are read (seed 2), 320 pictures for the scores (seed 3).
  Objects are rendered at 64 pixels and averaged to 16 or 32, with their shadows; a pixel belongs to the object with most of its area.
- **Windows**: the plans `sprites-window` and `solids-window` are the recipe `comet-window`, for sprites with a window for each, of half the
  picture. `solids-64` have 64 pixels and half widths of .16 to .38. Their settings were chosen on seed 0 and validation pictures.
- **Training** of the others: `Decomposition` with one random iterate of three; Adam at 1e-3, batches of 16, a tenth of the rate in the last
  15 %, gradients clipped to a norm of .05. A plan is a chain of stages, each with the encoder of the stage before; its minutes are those of
  all stages, of one processor. An encoder that a convolutional energy starts with learns at a twentieth of the rate, which keeps what it
  learned. Losses are in bfloat16 where the processor has it.
- **Masks**: the reading and the threshold of merging are those with the highest foreground ARI on the 128 pictures; then the 320 are
  scored once.
- **Baselines** on the same 320: k-means of colors with the true number of segments, and four quadrants, which ignore the picture.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import read_json, write_json
from benchmarks.papers.comet_2021.worlds import SEEDS, Budget, Scenes, fit, render_objects, run_experiment
from benchmarks.papers.experiment import arrange_rows
from composable_energy.sampling import Noise
from composable_energy_comet import Comet, Decomposition, load_comet, merge_components, save_comet
from composable_energy_comet.masks import SCORE_METHODS
from composable_energy_comet.metrics import adjusted_rand_index, kmeans_labels, quadrant_labels
from composable_energy_comet.recipe import comet_window_recipe
from composable_energy_image.data import Pictures
from composable_energy_training import Batch

TRAIN, VALIDATION, TEST = 12_000, 128, 320
CLIP = 0.05  # gradients of a mean square are small, .03 in the median; a larger limit would not stop the rare ones around 1
THRESHOLDS = (None, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Stage:
    """The last training of a plan; the encoder is new or comes from another plan."""

    world: str  # training world
    steps: int  # number of steps; their time depends on the machine and on what else it does
    after: str  # plan of the first encoder; a new encoder if empty
    options: Mapping[str, Any]  # options of the model


_QUADRATIC = {"head": "quadratic", "components": 4}
_CONV = {"head": "conv", "components": 4}

PLANS: Mapping[str, Stage] = {
    "sprites-quadratic": Stage("sprites", 2_600, "", {"size": 32, **_QUADRATIC}),
    "sprites-conv": Stage("sprites", 650, "sprites-quadratic", {"size": 32, **_CONV}),
    "objects-16-quadratic": Stage("objects-16", 6_450, "", {"size": 16, **_QUADRATIC, "components": 5}),
    "objects-16-conv": Stage("objects-16", 1_550, "objects-16-quadratic", {"size": 16, **_CONV, "components": 5}),
    "objects-32-quadratic": Stage("objects-32", 1_550, "objects-16-quadratic", {"size": 32, "seen": 16, **_QUADRATIC, "components": 5}),
    "tetris-16-quadratic": Stage("tetris-16", 13_800, "", {"size": 16, **_QUADRATIC}),
}


SPRITES = {"model.components": 4, "model.window": 16, "quadratic.steps": 4_000, "window.steps": 5_000}
WINDOWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {"sprites-window": ("sprites", SPRITES), "solids-window": ("solids-64", {})}
"""Plans of the recipe `comet-window`: their worlds, and settings that differ from its own."""

COLORS = torch.tensor([[5, 5, 5], [9, 3, 2], [2, 6, 9], [3, 8, 3], [9, 8, 2], [7, 4, 9], [9, 6, 4]]) / 10
SHOWN = 6


def world_of(plan: str) -> str:
    """Returns the world of a plan."""
    return WINDOWS[plan][0] if plan in WINDOWS else PLANS[plan].world


def train_windows(world: str, seed: int, folder: Path, data: Path, changes: Mapping[str, Any]) -> tuple[Comet, dict[str, Any]]:
    """Returns a model of `comet-window` and the cost of its training; trains it if it does not exist."""
    if not (folder / "report.json").exists():
        pictures = Pictures(render_objects(world, TRAIN, "train", data).images.mul(255).round().byte().numpy(), {}, folder.name)
        comet_window_recipe().with_changes({**changes, "training.seed": seed}).train(pictures, folder, progress=True)
    stages = read_json(folder / "report.json")["stages"].values()
    return load_comet(folder / "comet"), {"seconds_of_all": sum(s["cpu_seconds"] for s in stages), "steps": sum(s["steps"] for s in stages)}


def train_plan(plan: str, seed: int, parts: Path, data: Path) -> tuple[Comet, dict[str, float]]:
    """Returns the model of a plan and the cost of its training; trains it if it does not exist."""
    folder = parts / f"{plan}-{seed}"
    if plan in WINDOWS:
        world, changes = WINDOWS[plan]
        return train_windows(world, seed, folder, data, changes)
    stage = PLANS[plan]
    costs = folder / "training.json"
    if costs.exists():
        return load_comet(folder), read_json(costs)
    before, cost = train_plan(stage.after, seed, parts, data) if stage.after else (None, {"seconds_of_all": 0.0})
    images = render_objects(stage.world, TRAIN, "train", data).images
    torch.manual_seed(seed)
    comet = ce.get("encoder", "comet", **stage.options)
    if before is not None:
        comet.encoder.load_state_dict(before.encoder.state_dict())
    comet.energy.set_image(images)
    objective, budget = Decomposition(iterates="random"), Budget(steps=stage.steps, clip=CLIP, precision="auto")

    def loss(rows: Tensor, step: int) -> Tensor:
        return objective.loss(comet, Batch(images[rows], {}, Noise(seed, range(len(rows)), step))).value

    comet.to(memory_format=torch.channels_last).train()
    slow = comet.encoder.parameters() if stage.options["head"] == "conv" and before is not None else ()
    report = fit(loss, comet.parameters(), len(images), budget, seed, slow)
    report["seconds_of_all"] = cost["seconds_of_all"] + report["seconds"]
    save_comet(comet, folder)
    write_json(costs, report)
    return comet.eval(), report


def score(comet: Comet, validation: Scenes, test: Scenes) -> dict[str, Any]:
    """Returns the scores of a model on test pictures, with the best reading on the validation pictures."""
    readings = SCORE_METHODS[type(comet.energy)]
    found = {}
    for read in readings:
        scores = comet.scores(validation.images, read)
        for threshold in THRESHOLDS:
            found[read, threshold] = foreground_ari(validation.masks, merge_components(scores, threshold))
    read, threshold = best = max(found, key=lambda key: found[key])
    each = adjusted_rand_index(test.masks, comet.masks(test.images, threshold, read), foreground=True)
    return {"read": read, "merge": threshold, "validation FG-ARI": found[best], "FG-ARI": float(each.nanmean())}


def foreground_ari(masks: Tensor, labels: Tensor) -> float:
    """Returns the mean adjusted Rand index over the pixels of objects."""
    return float(adjusted_rand_index(masks, labels, foreground=True).nanmean())


def segmentation_baselines(test: Scenes) -> dict[str, float]:
    """Returns the scores of k-means on colors and of four quadrants."""
    counts = [int(masks.unique().numel()) for masks in test.masks]
    colors, size = kmeans_labels(test.images, counts), test.images.shape[-1]
    quadrants = quadrant_labels(len(test.masks), size)
    return {"k-means": foreground_ari(test.masks, colors), "quadrants": foreground_ari(test.masks, quadrants)}


def sheet(comet: Comet, x: Tensor) -> list[Tensor]:
    """Returns rows: pictures, reconstructions, masks, the ground, each part of the attention on it, and all further windows on it."""
    z, first = comet.encode(x), comet.encoder.components
    masks = COLORS[comet.masks(x)].movedim(3, 1)
    shown = [[0], *([0, k] for k in range(1, first)), [0, *range(first, comet.components)]]
    return [x, comet.decode(z), masks, *(comet.decode(z[:, some]) for some in shown)]


def run(args: Any) -> Iterator[dict[str, Any]]:
    """Yields the scores of all models, and of the baselines on their worlds."""
    parts, rows, baselines, pictures = args.parts / "objects", [], {}, {}
    for plan, seed in product(args.only, args.seed):
        comet, cost = train_plan(plan, seed, parts, args.data)
        test, target = render_objects(world_of(plan), TEST, "test", args.data), parts / f"{plan}-{seed}" / "scores.json"
        if not target.exists():
            found = score(comet, render_objects(world_of(plan), VALIDATION, "validation", args.data), test)
            write_json(target, {"plan": plan, "seed": seed, "seconds": round(cost["seconds_of_all"]), "steps": cost["steps"], **found})
        rows.append(read_json(target))
        print(rows[-1], flush=True)
        baselines[plan.rpartition("-")[0]] = segmentation_baselines(test)
        if plan == "sprites-window":
            pictures = pictures or {plan: arrange_rows(sheet(comet, test.images[:SHOWN]), 4)}
    yield {"rows": rows, "baselines": baselines, "pictures": pictures}


if __name__ == "__main__":
    run_experiment("objects", __doc__, run, only=[*PLANS, *WINDOWS], seed=SEEDS)
