r"""Components of two pictures in one: whether an object appears whose component was put in, with its shape and color.

    python -m benchmarks.papers.comet_2021.recombination [--plan NAME ...] [--seed 5 6 7] [--write] [--data FOLDER] [--parts FOLDER]

The models are those of `objects.py`, which trains them if they do not exist.

For 500 pairs of test pictures A, B (seed 3) an object of each is drawn, such that B's object is at least 2 pixels away from A's other
objects. The components of an object are the component with most of its pixels, and those that the threshold of merging assigns to the same
object. A's are replaced by B's, and the whole is decoded. True masks assign components to objects, and are not used otherwise.

A classifier evaluates the place of B's object in four pictures:

- `renders`: B itself, the accuracy of the classifier; `rebuilt`: B's reconstruction without a swap, the limit of the model;
- `swapped`: A with the object of B; `before`: A itself at the place of B's object, the rate without a swap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.papers.comet_2021.objects import train_plan, world_of
from benchmarks.papers.comet_2021.worlds import SEEDS, Budget, Scenes, fit, render_objects, run_experiment
from benchmarks.papers.experiment import print_table
from composable_energy_comet import Comet

PICTURES = 5_000
HALF = 7
BLURRED = 0.5


class CropClassifier(nn.Module):
    """A network that classifies crops by shape and color; the last class of shapes is "nothing"."""

    def __init__(self, shapes: int, colors: int, margin: int = HALF) -> None:
        super().__init__()
        self.shapes, self.colors, self.margin = shapes, colors, margin
        sizes = ((3, 32, 1 if margin == HALF else 2), (32, 48, 2), (48, 64, 2))
        down = [layer for a, b, stride in sizes for layer in (nn.Conv2d(a, b, 3, stride, 1), nn.SiLU())]
        self.net = nn.Sequential(*down, nn.Flatten(), nn.Linear(64 * 16, 128), nn.SiLU(), nn.Linear(128, shapes + 1 + colors))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits of shapes and of colors for crops with shape $(B, 3, 2 h + 1, 2 h + 1)$."""
        outputs = self.net(crops * 2 - 1)
        return outputs[:, : self.shapes + 1], outputs[:, self.shapes + 1 :]


def crop(images: Tensor, rows: Tensor, places: Tensor, half: int = HALF) -> Tensor:
    """Returns squares around places of pictures, with shape $(P, 3, 2 h + 1, 2 h + 1)$."""
    around = torch.arange(2 * half + 1)
    down, right = places[:, :1] + around, places[:, 1:] + around
    return images[rows[:, None, None], :, down[:, :, None], right[:, None]].permute(0, 3, 1, 2)


def pad(images: Tensor, half: int = HALF) -> Tensor:
    """Returns pictures with repeated borders, so that there are crops around each pixel."""
    return F.pad(images, (half,) * 4, mode="replicate")


def centers(masks: Tensor) -> Tensor:
    """Returns the rounded centers of nonempty masks, with shape $(P, 2)$."""
    line, weight = torch.arange(masks.shape[-1]).float(), masks.float()
    total = weight.sum((1, 2))
    return torch.stack([weight.sum(2) @ line / total, weight.sum(1) @ line / total], 1).round().long()


def load_classifier(world: str, parts: Path, data: Path) -> CropClassifier:
    """Returns the classifier of a world; trains it on other renders if it does not exist.

    Crops of sprites are rotated and mirrored, those of upright solids mirrored only, and those of tetris, where a rotated piece is another
    piece, neither. It trains for a minute, or two and a half with pictures of 64 pixels.
    """
    path = parts / f"classifier-{world}.pt"
    if not path.exists():
        upright, seconds = world.startswith(("solids", "objects", "toys")), 150.0 if world.endswith("-64") else 60.0
        budget = Budget(seconds, batch=64, rate=2e-3, cosine=True) if upright else Budget(seconds, batch=64)
        turned, mirrored = world.startswith("sprites"), not world.startswith("tetris")
        classifier = train_classifier(render_objects(world, PICTURES, "classifier", data), budget, turned, mirrored)
        path.parent.mkdir(parents=True, exist_ok=True)
        sizes = {name: getattr(classifier, name) for name in ("shapes", "colors", "margin")}
        torch.save({**sizes, "weights": classifier.state_dict()}, path)
    found = torch.load(path)
    weights, classifier = found.pop("weights"), CropClassifier(**found)
    classifier.load_state_dict(weights)
    return classifier.eval()


def train_classifier(scenes: Scenes, budget: Budget, turned: bool, mirrored: bool) -> CropClassifier:
    """Returns a classifier that is trained on crops, three at objects for one at an empty place."""
    rows, which = (scenes.shape >= 0).nonzero(as_tuple=True)
    places = centers(scenes.masks[rows] == which[:, None, None] + 1)
    shapes, colors = int(scenes.shape.max()) + 1, int(scenes.color.max()) + 1
    empty = torch.randint(scenes.masks.shape[-1], (len(rows), 2), generator=torch.Generator().manual_seed(0))
    near = F.max_pool2d((scenes.masks > 0).float()[:, None], 5, 1, 2)[:, 0] > 0
    free = ~near[rows, empty[:, 0], empty[:, 1]]
    torch.manual_seed(0)
    half = HALF if scenes.images.shape[-1] <= 32 else 2 * HALF + 1
    classifier, images = CropClassifier(shapes, colors, half), pad(scenes.images, half)

    def loss(batch: Tensor, step: int) -> Tensor:
        here = batch[: len(batch) * 3 // 4]
        moved = (places[here] + torch.randint(-1, 2, (len(here), 2))).clamp(0, scenes.masks.shape[-1] - 1)
        nothing = batch[len(here) :][free[batch[len(here) :]]]
        x = crop(images, torch.cat([rows[here], rows[nothing]]), torch.cat([moved, empty[nothing]]), half)
        shape, color = classifier(_augment(x, turned, mirrored))
        truth = torch.cat([scenes.shape[rows[here], which[here]], torch.full((len(nothing),), shapes)])
        return F.cross_entropy(shape, truth) + F.cross_entropy(color[: len(here)], scenes.color[rows[here], which[here]])

    fit(loss, classifier.parameters(), len(rows), budget, 0)
    return classifier.eval()


def _augment(x: Tensor, turned: bool, mirrored: bool) -> Tensor:
    """Returns crops with noise, half of them blurred; optionally all rotated by quarter turns, and half mirrored."""
    x = torch.rot90(x, int(torch.randint(4, ())), (2, 3)) if turned else x
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x) if mirrored else x
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    soft = F.conv2d(F.pad(x, (1,) * 4, mode="replicate"), kernel, groups=3)
    x = torch.where(torch.rand(len(x), 1, 1, 1) < BLURRED, soft, x)
    return x + 0.05 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


@torch.no_grad()
def classify(classifier: CropClassifier, images: Tensor, rows: Tensor, places: Tensor, shape: Tensor, color: Tensor) -> dict[str, float]:
    """Returns how often the classifier finds shapes, colors and both at places of pictures."""
    shapes, colors = classifier(crop(pad(images, classifier.margin), rows, places, classifier.margin))
    right, tone = shapes.argmax(1) == shape, (colors.argmax(1) == color) & (shapes.argmax(1) < classifier.shapes)
    return {name: float(found.float().mean()) for name, found in (("shape", right), ("color", tone), ("both", right & tone))}


SCORED = ("tetris-16-quadratic", "sprites-quadratic", "sprites-conv", "sprites-window", "solids-window")
PAIRS, TEST = 500, 1_000
APART = 2


@dataclass(frozen=True)
class Pairs:
    """Rows of A and B, with shape $(P,)$, and the indices of their objects."""

    a: Tensor
    b: Tensor
    of_a: Tensor
    of_b: Tensor


def draw_pairs(scenes: Scenes, n: int, seed: int = 0) -> Pairs:
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


def components_of(comet: Comet, scenes: Scenes, rows: Tensor, which: Tensor, merge: float) -> list[list[int]]:
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


def swap_objects(comet: Comet, scenes: Scenes, pairs: Pairs, merge: float) -> Tensor:
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


def measure(comet: Comet, classifier: CropClassifier, scenes: Scenes, pairs: Pairs, mixed: Tensor) -> list[dict[str, Any]]:
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


def run(args: Any) -> Iterator[dict[str, Any]]:
    parts, results = args.parts / "objects", []
    for plan in args.plan:
        world = world_of(plan)
        classifier, scenes = load_classifier(world, parts, args.data), render_objects(world, TEST, "test", args.data)
        pairs, chance = draw_pairs(scenes, PAIRS), 1 / classifier.shapes / classifier.colors
        for seed in args.seed:
            comet = train_plan(plan, seed, parts, args.data)[0]
            rows = measure(comet, classifier, scenes, pairs, swap_objects(comet, scenes, pairs, args.merge))
            print_table(f"{plan}, seed {seed}; by chance both are right in {chance:.3f}", rows)
            results.append({"model": plan, "seed": seed, "rows": rows})
        yield {"runs": results}


if __name__ == "__main__":
    run_experiment("recombination", __doc__, run, plan=list(SCORED), seed=SEEDS, merge=0.6)
