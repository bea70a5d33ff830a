r"""Components of two pictures in one: whether an object appears whose component was put in, with its shape and color.

    python -m benchmarks.papers.comet_2021.recombination [--plan NAME ...] [--seed 5 6 7] [--write] [--data FOLDER] [--parts FOLDER]

The models are those of `objects.py`, which trains them if they do not exist.

For 500 pairs of test pictures A, B (seed 3) an object of each is drawn, such that B's object is at least 2 pixels away from A's other
objects. The components of an object are the component with most of its pixels, and those that the threshold of merging assigns to the same
object. A's are replaced by B's, and the whole is decoded. True masks assign components to objects, and are not used otherwise.

A classifier (`crop_classifier.py`) evaluates the place of B's object in four pictures:

- `renders`: B itself, the accuracy of the classifier; `rebuilt`: B's reconstruction without a swap, the limit of the model;
- `swapped`: A with the object of B; `before`: A itself at the place of B's object, the rate without a swap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.papers.comet_2021.crop_classifier import CropClassifier, LabelledScenes, centers, classify, load_classifier, render_labelled
from benchmarks.papers.comet_2021.objects import PLANS, train_plan
from benchmarks.papers.comet_2021.worlds import SEEDS, read_experiment
from benchmarks.papers.experiment import COMET, print_table
from composable_energy_comet import Comet

SCORED = ("tetris-16-quadratic", "sprites-quadratic", "sprites-conv")
PAIRS, TEST = 500, 1_000
APART = 2


@dataclass(frozen=True)
class Pairs:
    """Rows of A and B, with shape $(P,)$, and the indices of their objects."""

    a: Tensor
    b: Tensor
    of_a: Tensor
    of_b: Tensor


def draw_pairs(scenes: LabelledScenes, n: int, seed: int = 0) -> Pairs:
    """Returns random pairs of pictures and objects in which B's object is apart from A's others."""
    generator = np.random.default_rng(seed)
    there = [np.flatnonzero(row >= 0) for row in scenes.shape.numpy()]
    kernel = 2 * APART + 1
    found: list[tuple[int, int, int, int]] = []
    while len(found) < n:
        a, b = generator.choice(len(scenes.images), 2, replace=False).tolist()
        i, j = int(generator.choice(there[a])), int(generator.choice(there[b]))
        others = (scenes.masks[a] > 0) & (scenes.masks[a] != i + 1)
        reach = F.max_pool2d((scenes.masks[b] == j + 1).float()[None, None], kernel, 1, APART)[0, 0] > 0
        if not bool((others & reach).any()):
            found.append((a, b, i, j))
    return Pairs(*torch.tensor(found).unbind(1))


def components_of(comet: Comet, scenes: LabelledScenes, rows: Tensor, which: Tensor, merge: float) -> list[list[int]]:
    """Returns the components of objects: the one with most of an object's pixels, and those with similar scores, by the cosine."""
    found = []
    for row, one, scores in zip(rows.tolist(), which.tolist(), comet.scores(scenes.images[rows]), strict=True):
        here = scenes.masks[row] == one + 1
        best = torch.bincount(scores.argmax(0)[here], minlength=comet.components).argmax()
        flat = scores.flatten(1)
        flat = F.normalize(flat - flat.amin(1, keepdim=True), dim=1)
        alike = flat @ flat[best] > merge
        alike[best] = True
        found.append(alike.nonzero()[:, 0].tolist())
    return found


def swap_objects(comet: Comet, scenes: LabelledScenes, pairs: Pairs, merge: float) -> Tensor:
    """Returns A with the components of B's object in place of those of A's object, with shape $(P, 3, S, S)$."""
    out, taken = components_of(comet, scenes, pairs.a, pairs.of_a, merge), components_of(comet, scenes, pairs.b, pairs.of_b, merge)
    own, others = comet.encode(scenes.images[pairs.a]), comet.encode(scenes.images[pairs.b])
    mixed = [
        torch.cat([own[p, [k for k in range(comet.components) if k not in gone]], others[p, put]])
        for p, (gone, put) in enumerate(zip(out, taken, strict=True))
    ]
    found = torch.empty(len(mixed), *scenes.images.shape[1:])
    for count in {len(z) for z in mixed}:  # of components
        alike = [p for p, z in enumerate(mixed) if len(z) == count]
        found[alike] = comet.decode(torch.stack([mixed[p] for p in alike]))
    return found


def measure(comet: Comet, classifier: CropClassifier, scenes: LabelledScenes, pairs: Pairs, mixed: Tensor) -> list[dict[str, Any]]:
    """Returns a row of figures for each of the evaluated pictures."""
    x = scenes.images
    rebuilt = comet.decode(comet.encode(x))
    of_b = centers(scenes.masks[pairs.b] == pairs.of_b[:, None, None] + 1)
    wanted = scenes.shape[pairs.b, pairs.of_b], scenes.color[pairs.b, pairs.of_b]
    return [
        {"pictures": "renders", **classify(classifier, x, pairs.b, of_b, *wanted)},
        {"pictures": "rebuilt", **classify(classifier, rebuilt, pairs.b, of_b, *wanted)},
        {"pictures": "swapped", **classify(classifier, mixed, torch.arange(len(pairs.a)), of_b, *wanted)},
        {"pictures": "before", **classify(classifier, x, pairs.a, of_b, *wanted)},
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    args = read_experiment("recombination", __doc__, arguments, plan=list(SCORED), seed=SEEDS, merge=0.6, classifier=60.0)
    parts, results = args.parts / "objects", []
    for plan in args.plan:
        world = PLANS[plan].world
        classifier, scenes = load_classifier(world, args.classifier, parts, args.data), render_labelled(world, TEST, 3, args.data)
        pairs, chance = draw_pairs(scenes, PAIRS), 1 / classifier.shapes / classifier.colors
        for seed in args.seed:
            comet = train_plan(plan, seed, parts, args.data)[0]
            mixed = swap_objects(comet, scenes, pairs, args.merge)
            rows = measure(comet, classifier, scenes, pairs, mixed)
            print_table(f"{plan}, seed {seed}; by chance both are right in {chance:.3f}", rows)
            results.append({"model": plan, "seed": seed, "chance": chance, "rows": rows})
    if args.write:
        COMET.write("recombination", {"runs": results}, pairs=PAIRS, merge=args.merge, classifier_seconds=args.classifier)


if __name__ == "__main__":
    main()
