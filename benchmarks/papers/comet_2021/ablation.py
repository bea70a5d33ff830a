r"""What makes components objects: the paper's ablation (its table 2) in its order, then the additions of this package, one after the other.

    python -m benchmarks.papers.comet_2021.ablation [--only ROW ...] [--seed 5] [--seconds 60] [--data FOLDER] [--parts FOLDER]
    python -m benchmarks.papers.comet_2021.ablation --gather [--write]

The first trains and scores, in one thread; figures go to the folder of parts, and existing ones are used again. Both print the table. Each
row adds one change to the row above, and has the same seconds of one processor:

- `none`: the paper's vector encoder, 4 components of 64 numbers; an energy without coordinates; start at noise in [0, 1]; all 3 iterates;
- `recurrent`: recurrent attention, one component after another; `small latent`: 16 numbers; `position`: coordinates of the picture. That
  is the published form, with 32 filters and 3 steps;
- `image`: the start is the median picture with a little noise; `relative`: coordinates relative to each component's attention, in place of
  those of the picture; `random`: one random iterate of 3; `warm`: the first half of the time trains quadratic energies, whose encoder the
  convolutional energies continue with. `quadratic`: quadratic energies for all of the time; `fine`: attention over 8 x 8 cells in place of
  4 x 4; `inhibition`: attention that avoids what earlier steps attended to; `clip`: gradients clipped to a norm of .05 in place of 1,
  which they never reach; `cap`: bounded logits, so that attention does not narrow to one cell before anything is learned.

Data: 12,000 colored sprites for training (seed 1), averaged to 16 pixels; 128 (seed 2) choose between readings (`single`; `share` and
`weight` where available) and thresholds of merging; 320 (seed 3) are scored once. Masks are the most frequent label of 2 x 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.objects import CLIP, TEST, THRESHOLDS, TRAIN, VALIDATION
from benchmarks.papers.comet_2021.options import SEEDS, experiment_parser
from benchmarks.papers.comet_2021.segmentation import foreground_ari, segmentation_baselines
from benchmarks.papers.comet_2021.training import Budget, fit
from benchmarks.papers.comet_2021.worlds import Scenes, average_pixels, majority_labels, render_objects
from benchmarks.papers.experiment import COMET, print_table, write_rounded
from composable_energy.sampling import Noise
from composable_energy_comet import AttentionEncoder, Comet, ConvEnergy, Decomposition, QuadraticEnergy, VectorEncoder, merge_components
from composable_energy_comet.metrics import adjusted_rand_index, territory_labels
from composable_energy_training import Batch

SIZE, COMPONENTS = 16, 4


@dataclass(frozen=True)
class Row:
    """A model and its training.

    Attributes:
        encoder: `vector` or `attention`.
        latent: Size of a component.
        coordinates: Coordinates of the energy.
        start: Start of the descent.
        iterates: Iterates that the loss compares.
        quadratic: Share of the time for quadratic energies, at the beginning.
        cells: Height and width of the grid of attention.
        inhibition: Whether attention avoids what earlier steps attended to.
        clip: Largest norm of the gradients.
        cap: Bound of the logits of attention; None for no bound.
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


def render_sprites(n: int, split: str, data: Path) -> Scenes:
    """Returns colored sprites averaged to 16 pixels."""
    scenes = render_objects("sprites", n, split, data)
    shrink = scenes.images.shape[-1] // SIZE
    return Scenes(average_pixels(scenes.images, shrink), majority_labels(scenes.masks, shrink))


def train_row(row: Row, images: Tensor, seconds: float, seed: int) -> tuple[Comet, dict[str, float]]:
    """Returns the trained model of a row, and the steps and seconds of the training."""
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
    figures = {"steps": 0.0, "seconds": 0.0}
    for comet, time in models:
        comet.energy.set_image(images)
        budget, objective = Budget(time, clip=row.clip), Decomposition(iterates=row.iterates)  # pyright: ignore[reportArgumentType]
        found = _train(comet, objective, images, budget, seed)
        figures = {name: figures[name] + found[name] for name in figures}
    return models[-1][0].eval(), figures


def score(comet: Comet, validation: Scenes, test: Scenes) -> dict[str, Any]:
    """Returns the scores on test pictures, with the best reading and threshold on the validation pictures."""
    found = {
        (read, threshold): foreground_ari(validation.masks, merge_components(scores, threshold))
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
        "unmerged": foreground_ari(test.masks, merge_components(scores[plain], None)),
        "territory": foreground_ari(test.masks, territory_labels(labels)),
        "read": read,
        "merge": threshold,
    }


def readings(comet: Comet, x: Tensor) -> dict[str, Tensor]:
    """Returns scores of components at pixels by each reading; `single` works for energies without coordinates, too."""
    z, image = comet.encode(x), comet.energy.image
    singles = [comet.decode(z[:, k : k + 1].expand(-1, comet.components, -1)) for k in range(comet.components)]
    alone = torch.stack(singles, 1)
    away, off = (alone - image).abs().sum(2), (alone - x[:, None]).square().sum(2)
    found = {"single": F.avg_pool2d(away * (-off / 0.2).exp(), 3, 1, 1)}
    if isinstance(comet.energy, QuadraticEnergy):
        found["weight"] = comet.scores(x, "weight")
    elif comet.energy.coordinates != "none":
        found["share"] = comet.scores(x, "share")
    return found


def _train(comet: Comet, objective: Decomposition, images: Tensor, budget: Budget, seed: int) -> dict[str, float]:
    def loss(rows: Tensor, step: int) -> Tensor:
        return objective.loss(comet, Batch(images[rows], {}, Noise(seed, range(len(rows)), step))).value

    return fit(loss, comet.train().parameters(), len(images), budget, seed)


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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
    parser = experiment_parser("ablation", __doc__)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seed", type=int, nargs="+", default=SEEDS[:1])
    parser.add_argument("--seconds", type=float, default=60.0, help="of one processor, for each training")
    parser.add_argument("--gather", action="store_true", help="train nothing, and print the table of what exists")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    test, parts = render_sprites(TEST, "test", args.data), args.parts / "ablation"
    if not args.gather:
        images, validation = render_sprites(TRAIN, "train", args.data).images, render_sprites(VALIDATION, "validation", args.data)
        for seed in args.seed:
            for name in args.only:
                target = parts / f"{name.replace(' ', '-')}-{seed}.json"
                if target.exists():
                    continue
                comet, figures = train_row(ROWS[name], images, args.seconds, seed)
                result = {"row": name, "seed": seed, **figures, **score(comet, validation, test)}
                write_rounded(target, result)
                print_table(f"{name}, seed {seed}", [result])
    results = [read_json(path) for path in sorted(parts.glob("*.json"))]
    rows, ground = summarize(results), segmentation_baselines(test)
    print_table("Ablation: means over seeds", rows)
    print_table("Baselines", [ground])
    if args.write:
        figures = {"table": rows, "baselines": ground, "runs": results}
        COMET.write("ablation", figures, size=SIZE, seconds=args.seconds, train=TRAIN, test=TEST)


if __name__ == "__main__":
    main()
