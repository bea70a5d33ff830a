r"""What makes components objects: the paper's ablation (its table 2) in its order, then what this package adds, one after the other.

    pip install -e '.[scenes,metrics]' -e plugins/comet -c constraints.txt
    python benchmarks/papers/comet_2021/ablation.py [--only ROW ...] [--seed N] [--seconds 60] [--data FOLDER] [--parts FOLDER]
    python benchmarks/papers/comet_2021/ablation.py --gather [--write]

The first trains and scores, in one thread; figures go to the folder of parts, and what lies there is not done again. The second makes the
table. Each row adds one change to the one above, and has the same seconds of one processor:

- `none`: the paper's vector encoder, 4 components of 64 numbers; an energy that knows no places; start at noise in [0, 1]; all 3 iterates;
- `recurrent`: attention tells one component after another; `small latent`: 16 numbers; `position`: coordinates of the picture. That is the
  published form, with 32 filters and 3 steps;
- `image`: the start is the median picture with a little noise; `relative`: coordinates as seen from each component's attention, in place of
  those of the picture; `random`: one iterate is drawn of 3; `warm`: the first half of the time trains quadratic energies, whose encoder
  goes on with convolutional ones. `quadratic`: quadratic energies for all of the time, beside it; `fine`: with a grid of attention of 8 x 8
  in place of 4 x 4; `inhibition`: whose looks turn away from what earlier ones saw; `clip`: with gradients cut to a norm of .05 in
  place of 1, which they never reach; `cap`: with bounded logits, so that no look narrows to one cell before anything is learnt.

Data: 12,000 colored sprites to train on (seed 1), averaged to 16 pixels; 128 (seed 2) choose between readings (`single`; `share` and
`weight` where they are to be had) and thresholds of merging; 320 (seed 3) are scored once. Masks are the most frequent label of 2 x 2.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comet_common import CACHE, RESULTS, Budget, Scenes, about, fit, majority, objects, pooled, show, write
from objects import CLIP, TEST, THRESHOLDS, TRAIN, VALIDATION, floors
from torch import Tensor
from torch.nn import functional as F

from composable_energy.sampling import Noise
from composable_energy_comet import AttentionEncoder, Comet, ConvEnergy, Decomposition, QuadraticEnergy, VectorEncoder, merge_components
from composable_energy_comet.metrics import adjusted_rand_index, territory_labels
from composable_energy_training import Batch

__all__ = ["ROWS", "Row", "fitted", "scored"]

SIZE, COMPONENTS = 16, 4


@dataclass(frozen=True)
class Row:
    """A model and how it is trained.

    Attributes:
        encoder: `vector` or `attention`.
        latent: Numbers of a component.
        coordinates: Of the energy.
        start: Of the descent.
        iterates: Which are compared.
        quadratic: The share of the time that trains quadratic energies first.
        cells: Height and width of the grid that is attended to.
        inhibition: Whether looks turn away from what earlier ones saw.
        clip: The norm to which gradients are cut.
        cap: The size of the logits of attention; None for no bound.
    """

    encoder: str = "attention"
    latent: int = 16
    coordinates: str = "relative"
    start: str = "image"
    iterates: str = "random"
    quadratic: float = 0.0
    cells: int = 4
    inhibition: bool = False
    clip: float = 1.0
    cap: float | None = None


ROWS: Mapping[str, Row] = {
    "none": Row("vector", 64, "none", "uniform", "all"),
    "recurrent": Row("attention", 64, "none", "uniform", "all"),
    "small latent": Row("attention", 16, "none", "uniform", "all"),
    "position": Row("attention", 16, "absolute", "uniform", "all"),
    "image": Row("attention", 16, "absolute", "image", "all"),
    "relative": Row("attention", 16, "relative", "image", "all"),
    "random": Row(),
    "warm": Row(quadratic=0.5),
    "quadratic": Row(quadratic=1.0),
    "fine": Row(quadratic=1.0, cells=8),
    "inhibition": Row(quadratic=1.0, cells=8, inhibition=True),
    "clip": Row(quadratic=1.0, cells=8, inhibition=True, clip=CLIP),
    "cap": Row(quadratic=1.0, cells=8, inhibition=True, clip=CLIP, cap=8.0),
}


def sprites(n: int, split: str, data: Path) -> Scenes:
    """Returns colored sprites averaged to 16 pixels."""
    scenes = objects("sprites", n, split, data)
    shrink = scenes.images.shape[-1] // SIZE
    return Scenes(pooled(scenes.images, shrink), majority(scenes.masks, shrink))


def fitted(row: Row, images: Tensor, seconds: float, seed: int) -> tuple[Comet, dict[str, float]]:
    """Returns the trained model of a row, and how many steps and seconds that took."""
    torch.manual_seed(seed)
    pose = row.coordinates == "relative"
    if row.encoder == "vector":
        encoder = VectorEncoder(SIZE, components=COMPONENTS, latent=row.latent, network="residual")
    else:
        grid = {"cells": row.cells, "inhibition": row.inhibition, "cap": row.cap}
        encoder = AttentionEncoder(SIZE, components=COMPONENTS, latent=row.latent, pose=pose, **grid)
    shared: dict[str, Any] = {"latent": row.latent, "coordinates": row.coordinates, "start": row.start}
    stages = ((QuadraticEnergy, row.quadratic), (ConvEnergy, 1 - row.quadratic))
    models = [(Comet(encoder, energy(SIZE, **shared)), share * seconds) for energy, share in stages if share]
    told = {"steps": 0.0, "seconds": 0.0}
    for comet, time in models:
        comet.energy.set_image(images)
        budget, objective = Budget(time, clip=row.clip), Decomposition(iterates=row.iterates)  # pyright: ignore[reportArgumentType]
        found = _trained(comet, objective, images, budget, seed)
        told = {name: told[name] + found[name] for name in told}
    return models[-1][0].eval(), told


def scored(comet: Comet, validation: Scenes, test: Scenes) -> dict[str, Any]:
    """Returns the scores on test pictures, with the reading and the threshold that were best on the validation pictures."""
    found = {
        (read, threshold): _foreground(validation.masks, merge_components(scores, threshold))
        for read, scores in readings(comet, validation.images).items()
        for threshold in THRESHOLDS
    }
    read, threshold = max(found, key=lambda key: found[key])
    plain = max((key for key in found if key[1] is None), key=lambda key: found[key])[0]
    scores = readings(comet, test.images)
    labels = merge_components(scores[read], threshold)
    each = adjusted_rand_index(test.masks, labels, foreground=True)
    rebuilt = comet.decode(comet.encode(test.images))
    return {
        "error": float((rebuilt - test.images).square().mean()),
        "FG-ARI": float(each.nanmean()),
        "s.e.": float(each.std() / len(each) ** 0.5),
        "unmerged": _foreground(test.masks, merge_components(scores[plain], None)),
        "territory": _foreground(test.masks, territory_labels(labels)),
        "read": read,
        "merge": threshold,
    }


def readings(comet: Comet, x: Tensor) -> dict[str, Tensor]:
    """Returns scores of components at pixels by each way to read them; energies that know no places are read as `single` as well."""
    z, image = comet.encode(x), comet.energy.image
    drawn = [comet.decode(z[:, k : k + 1].expand(-1, comet.components, -1)) for k in range(comet.components)]
    alone = torch.stack(drawn, 1)
    away, off = (alone - image).abs().sum(2), (alone - x[:, None]).square().sum(2)
    found = {"single": F.avg_pool2d(away * (-off / 0.2).exp(), 3, 1, 1)}
    if isinstance(comet.energy, QuadraticEnergy):
        found["weight"] = comet.scores(x, "weight")
    elif comet.energy.coordinates != "none":
        found["share"] = comet.scores(x, "share")
    return found


def _trained(comet: Comet, objective: Decomposition, images: Tensor, budget: Budget, seed: int) -> dict[str, float]:
    def loss(rows: Tensor, step: int) -> Tensor:
        return objective.loss(comet, Batch(images[rows], {}, Noise(seed, range(len(rows)), step))).value

    return fit(loss, comet.train().parameters(), len(images), budget, seed)


def _foreground(masks: Tensor, labels: Tensor) -> float:
    return float(adjusted_rand_index(masks, labels, foreground=True).nanmean())


def gathered(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each model: means over seeds, and the foreground ARI of each."""
    rows = []
    for name in ROWS:
        some = [result for result in results if result["row"] == name]
        if some:
            means = {key: sum(result[key] for result in some) / len(some) for key in ("steps", "error", "FG-ARI", "unmerged", "territory")}
            each = ", ".join(f"{result['FG-ARI']:.2f} ({result['read']})" for result in some)
            rows.append({"row": name, "seeds": len(some), **means, "each": each})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, default=60.0, help="of one processor, for each training")
    parser.add_argument("--gather", action="store_true", help="make the table of what is there")
    parser.add_argument("--write", action="store_true", help="write the table into the repository")
    parser.add_argument("--data", type=Path, default=CACHE, help="where renders are kept")
    parser.add_argument("--parts", type=Path, default=CACHE / "ablation", help="where figures are kept")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    test = sprites(TEST, "test", asked.data)
    if not asked.gather:
        images, validation = sprites(TRAIN, "train", asked.data).images, sprites(VALIDATION, "validation", asked.data)
        for seed in asked.seed:
            for name in asked.only:
                target = asked.parts / f"{name.replace(' ', '-')}-{seed}.json"
                if target.exists():
                    continue
                comet, told = fitted(ROWS[name], images, asked.seconds, seed)
                result = {"row": name, "seed": seed, **told, **scored(comet, validation, test)}
                write(target, result)
                show(f"{name}, seed {seed}", [result])
    results = [json.loads(path.read_text()) for path in sorted(asked.parts.glob("*.json"))]
    rows, ground = gathered(results), floors(test)
    show("Ablation: means over seeds", rows)
    show("Floors", [ground])
    if asked.write:
        told = about(size=SIZE, seconds=asked.seconds, train=TRAIN, test=TEST)
        write(RESULTS / "ablation.json", {"about": told, "table": rows, "floors": ground, "runs": results})


if __name__ == "__main__":
    main()
