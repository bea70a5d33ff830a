r"""Objects without labels: how well masks of components are those of the objects, on four worlds, beside the floors.

    pip install -e '.[scenes,metrics]' -c constraints.txt
    python benchmarks/papers/comet_2021/objects.py --only sprites-conv --seed 0 [--data FOLDER] [--parts FOLDER]
    python benchmarks/papers/comet_2021/objects.py --gather [--write]

The first trains one model, in one thread, and scores it; weights and figures go to the folder of parts, and what lies there is not done
again. Without `--only` all are done, for seeds 0 and 1. The second makes the table and the pictures of the parts that are there.

- **Data**: 12,000 pictures to train on (seed 1), 128 to choose how masks are read (seed 2), 320 to score (seed 3). Objects are rendered at
  64 pixels and averaged to 16 or 32, with their shadows; a pixel belongs to the object that most of it shows.
- **Training**: `Decomposition` with one random iterate of three; Adam at 1e-3, batches of 16, a tenth of the rate in the last 15 %, and
  gradients cut to a norm of .05. A plan
  is a chain of stages, each of which begins with the encoder of the one before; its seconds are those of all, of one processor. An encoder
  that convolutional energies begin with learns at a twentieth of the rate, so that it keeps to what it found.
- **Masks**: reading and threshold of merging are those with the highest foreground ARI on the 128; then the 320 are scored once. Without
  merging the best reading is told in brackets. All-pixel ARI counts what is near the start (Otsu's threshold of |reconstruction - start|)
  as background.
- **Floors** on the same 320: k-means of colors with the true number of segments, four quadrants that look at no picture, and the territory
  check: each pixel's most frequent component over the set, as one label map for all pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comet_common import CACHE, PICTURES, RESULTS, Budget, Scenes, about, fit, objects, show, strip, write
from torch import Tensor

import composable_energy as ce
from composable_energy.sampling import Noise
from composable_energy_comet import Comet, Decomposition, load_comet, merge_components, save_comet
from composable_energy_comet.masks import SCORE_METHODS
from composable_energy_comet.metrics import (
    adjusted_rand_index,
    kmeans_labels,
    mean_segmentation_covering,
    quadrant_labels,
    territory_labels,
)
from composable_energy_training import Batch

__all__ = ["CLIP", "PLANS", "Stage", "fitted", "floors", "scored"]

TRAIN, VALIDATION, TEST = 12_000, 128, 320
CLIP = 0.05  # a mean square has small gradients, .03 in the median: those of 1, which end what was learnt, are told by no larger limit
THRESHOLDS = (None, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Stage:
    """A training of a model whose encoder comes from another plan, or is new.

    Attributes:
        world: What it is trained on.
        seconds: How long.
        after: The plan whose encoder it begins with; none if empty.
        options: Of the model.
        iterates: Which iterates are compared.
    """

    world: str
    seconds: float
    after: str
    options: Mapping[str, Any]
    iterates: str = "random"


_QUADRATIC = {"head": "quadratic", "components": 4}
_CONV = {"head": "conv", "components": 4}

PLANS: Mapping[str, Stage] = {
    "sprites-quadratic": Stage("sprites", 200, "", {"size": 32, **_QUADRATIC}),
    "sprites-conv": Stage("sprites", 150, "sprites-quadratic", {"size": 32, **_CONV}),
    "objects-16-quadratic": Stage("objects-16", 180, "", {"size": 16, **_QUADRATIC, "components": 5}),
    "objects-16-conv": Stage("objects-16", 120, "objects-16-quadratic", {"size": 16, **_CONV, "components": 5}),
    "objects-32-quadratic": Stage("objects-32", 150, "objects-16-quadratic", {"size": 32, "seen": 16, **_QUADRATIC, "components": 5}),
    "tetris-16-quadratic": Stage("tetris-16", 300, "", {"size": 16, **_QUADRATIC}),
}


def fitted(plan: str, seed: int, parts: Path, data: Path) -> tuple[Comet, dict[str, float]]:
    """Returns the model of a plan and what its training cost; trains it if its folder is not there."""
    stage, folder = PLANS[plan], parts / f"{plan}-{seed}"
    told = folder / "training.json"
    if told.exists():
        return load_comet(folder), json.loads(told.read_text())
    before, cost = fitted(stage.after, seed, parts, data) if stage.after else (None, {"seconds_of_all": 0.0})
    images = objects(stage.world, TRAIN, "train", data).images
    torch.manual_seed(seed)
    comet = ce.get_encoder("comet", **stage.options)
    if before is not None:
        comet.encoder.load_state_dict(before.encoder.state_dict())
    comet.energy.set_image(images)
    objective, budget = Decomposition(iterates=stage.iterates), Budget(stage.seconds, clip=CLIP)

    def loss(rows: Tensor, step: int) -> Tensor:
        return objective.loss(comet, Batch(images[rows], {}, Noise(seed, range(len(rows)), step))).value

    comet.to(memory_format=torch.channels_last).train()
    slow = comet.encoder.parameters() if stage.options["head"] == "conv" and before is not None else ()
    report = fit(loss, comet.parameters(), len(images), budget, seed, slow)
    report["seconds_of_all"] = cost["seconds_of_all"] + report["seconds"]
    save_comet(comet, folder)
    told.write_text(json.dumps(report))
    return comet.eval(), report


def scored(comet: Comet, validation: Scenes, test: Scenes) -> dict[str, Any]:
    """Returns the scores of a model on test pictures, with the reading that was best on the validation pictures."""
    readings = SCORE_METHODS[type(comet.energy)]
    found = {}
    for read in readings:
        scores = comet.scores(validation.images, read)
        for threshold in THRESHOLDS:
            found[read, threshold] = _foreground(validation.masks, merge_components(scores, threshold))
    best, plain = max(found, key=lambda key: found[key]), max(((read, None) for read in readings), key=lambda key: found[key])
    read, threshold = best
    labels = comet.masks(test.images, threshold, read)
    unmerged = comet.masks(test.images, None, plain[0])
    rebuilt = comet.decode(comet.encode(test.images))
    away = (rebuilt - comet.energy.image).abs().sum(1)
    whole = torch.where(away > otsu(away), labels + 1, 0)
    each = adjusted_rand_index(test.masks, labels, foreground=True)
    return {
        "read": read,
        "merge": threshold,
        "validation FG-ARI": found[best],
        "error": float((rebuilt - test.images).square().mean()),
        "FG-ARI": float(each.nanmean()),
        "s.e.": float(each.std() / len(each) ** 0.5),
        "unmerged": _foreground(test.masks, unmerged),
        "all-pixel ARI": float(adjusted_rand_index(test.masks, whole).mean()),
        "mSC": float(mean_segmentation_covering(test.masks, whole).nanmean()),
        "FG-mSC": float(mean_segmentation_covering(test.masks, labels, foreground=True).nanmean()),
        "territory": _foreground(test.masks, territory_labels(labels)),
    }


def floors(test: Scenes) -> dict[str, float]:
    """Returns the floors that no model is needed for."""
    counts = [int(masks.unique().numel()) for masks in test.masks]
    colors, size = kmeans_labels(test.images, counts), test.images.shape[-1]
    return {
        "k-means": _foreground(test.masks, colors),
        "k-means all-pixel": float(adjusted_rand_index(test.masks, colors).mean()),
        "quadrants": _foreground(test.masks, quadrant_labels(len(test.masks), size)),
    }


def otsu(maps: Tensor) -> Tensor:
    """Returns for each map the threshold that splits its values best (Otsu, 1979), with shape $(B, 1, 1)$."""
    values = maps.flatten(1).sort(1).values
    n = values.shape[1]
    below = torch.arange(1, n + 1)
    sums = values.cumsum(1)
    means, others = sums / below, (sums[:, -1:] - sums) / (n - below).clamp(min=1)
    between = (means - others).square() * below * (n - below)
    return values.gather(1, between[:, :-1].argmax(1, keepdim=True))[:, :, None]


def pictured(comet: Comet, test: Scenes, name: str) -> None:
    """Writes rows: the picture, its reconstruction, its masks, each component alone, and with components of the next picture."""
    x = test.images[:6]
    parts, rebuilt, labels = comet.decompose(x), comet.decode(comet.encode(x)), comet.masks(x)
    colors = torch.tensor([[0.9, 0.3, 0.2], [0.2, 0.6, 0.9], [0.3, 0.8, 0.3], [0.9, 0.8, 0.2], [0.7, 0.4, 0.9]])
    shown = (rebuilt - comet.energy.image).abs().sum(1)
    masks = torch.where((shown > otsu(shown))[:, None], colors[labels].movedim(3, 1), 0.0)
    alone = [comet.recombine([part]) for part in parts]
    others = comet.decompose(x.roll(-1, 0))
    mixed = comet.recombine([parts[0], parts[1], others[0], others[1]])
    scale = 2 if x.shape[-1] >= 32 else 4
    write(PICTURES / f"{name}.png", strip([x, rebuilt, masks, *alone, mixed], scale))


def _foreground(masks: Tensor, labels: Tensor) -> float:
    return float(adjusted_rand_index(masks, labels, foreground=True).nanmean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=list(PLANS), help="one plan; all if not given")
    parser.add_argument("--seed", type=int, help="one seed; 0 and 1 if not given")
    parser.add_argument("--gather", action="store_true", help="make the table of what is there")
    parser.add_argument("--write", action="store_true", help="write the table, and pictures")
    parser.add_argument("--data", type=Path, default=CACHE, help="where renders are kept")
    parser.add_argument("--parts", type=Path, default=CACHE / "objects", help="where models and figures are kept")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not asked.gather:
        for plan in [asked.only] if asked.only else PLANS:
            for seed in (0, 1) if asked.seed is None else (asked.seed,):
                _one(plan, seed, asked.parts, asked.data)
        return
    rows = [json.loads(path.read_text()) for path in sorted(asked.parts.glob("*/scores.json"))]
    worlds = {PLANS[row["plan"]].world for row in rows}
    found = {world: floors(objects(world, TEST, "test", asked.data)) for world in sorted(worlds)}
    show("Objects", rows)
    show("Floors", [{"world": world, **values} for world, values in found.items()])
    if asked.write:
        write(RESULTS / "objects.json", {"about": about(train=TRAIN, test=TEST), "rows": rows, "floors": found})
        for plan, stage in PLANS.items():
            if (asked.parts / f"{plan}-0" / "training.json").exists():
                pictured(load_comet(asked.parts / f"{plan}-0"), objects(stage.world, TEST, "test", asked.data), plan)


def _one(plan: str, seed: int, parts: Path, data: Path) -> None:
    comet, cost = fitted(plan, seed, parts, data)
    target = parts / f"{plan}-{seed}" / "scores.json"
    if not target.exists():
        world = PLANS[plan].world
        found = scored(comet, objects(world, VALIDATION, "validation", data), objects(world, TEST, "test", data))
        row = {"plan": plan, "seed": seed, "seconds": round(cost["seconds_of_all"]), "steps": cost["steps"], **found}
        target.write_text(json.dumps(row))
        show(f"{plan}, seed {seed}", [row])


if __name__ == "__main__":
    main()
