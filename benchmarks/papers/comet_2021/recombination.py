r"""Parts of two pictures in one: is the object there whose part was put in, with its shape and its color?

    pip install -e '.[scenes,metrics]' -e plugins/comet -c constraints.txt
    python benchmarks/papers/comet_2021/recombination.py [--plan NAME ...] [--seed 0 1] [--write] [--data FOLDER] [--parts FOLDER]

The models are those of `objects.py`, which trains them where they are not there yet.

For 500 pairs of test pictures A, B (seed 3) an object of each is drawn, such that B's would stand apart (by 2 pixels) from A's other
objects. The parts of an object are the component that has most of its pixels, and those that the threshold of merging takes for the same.
A's are replaced by B's, and the whole is decoded. True masks say which part is whose, and are not used otherwise.

A judge, a network of 15 x 15 crops, says which shape, which color, or that there is nothing in the middle. It is trained for 60 s on
renders of seed 4, turned (but for tetris, whose pieces are others when they are turned), blurred and with noise, and looks at the place of
B's object in five pictures:

- `renders`: B itself: what the judge can do; `rebuilt`: B's reconstruction, without any swap: what the model can do;
- `swapped`: what is asked; `kept`: A's other objects in the swapped pictures, at their places;
- `before`: A itself at the place of B's object: how often it is found without a swap. `gone`: how often the judge finds nothing in the
  swapped picture where A's object was, where B's does not cover it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comet_common import CACHE, PICTURES, RESULTS, WORLDS, Budget, about, fit, majority, pooled, show, strip, write
from objects import PLANS, fitted
from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
from composable_energy_comet import Comet
from composable_energy_image.data import render_to

__all__ = ["Judge", "Pairs", "judged", "pairs_of", "swapped"]

SCORED = ("tetris-16-quadratic", "sprites-quadratic", "sprites-conv")
PAIRS, TEST, JUDGED, JUDGE_SEED = 500, 1_000, 5_000, 4
HALF, APART = 7, 2
BLURRED = 0.5


@dataclass(frozen=True)
class Labelled:
    """Pictures with shape $(N, 3, S, S)$, masks $(N, S, S)$, and for each of up to $M$ objects a shape and a color, with shape $(N, M)$,
    -1 where there is none."""

    images: Tensor
    masks: Tensor
    shape: Tensor
    color: Tensor


@dataclass(frozen=True)
class Pairs:
    """Rows of A and B, with shape $(P,)$, and which objects are drawn of them, from 0."""

    a: Tensor
    b: Tensor
    of_a: Tensor
    of_b: Tensor


def labelled(name: str, n: int, seed: int, data: Path) -> Labelled:
    """Renders pictures of a world with masks and labels, or reads them; objects that show no pixel count as none."""
    world, options, shrink = WORLDS[name]
    scenes = render_to(data / f"{world}-{options['size']}-labelled-{seed}-{n}", ce.get_world(world, **options), n, seed, masks=True)
    masks = majority(torch.from_numpy(np.array(scenes.masks)).long(), shrink)
    images = pooled(torch.from_numpy(np.array(scenes.images)).float() / 255, shrink)
    shape, color = (torch.from_numpy(np.array(scenes.labels[field])).long() for field in ("shape", "color"))
    seen = torch.stack([(masks == i + 1).flatten(1).any(1) for i in range(shape.shape[1])], 1)
    return Labelled(images, masks, shape.where(seen, -1), color.where(seen, -1))


class Judge(nn.Module):
    """A network of crops, which says the shape, with nothing as the last class, and the color.

    Args:
        shapes: How many.
        colors: How many.
    """

    def __init__(self, shapes: int, colors: int) -> None:
        super().__init__()
        self.shapes, self.colors = shapes, colors
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 1, 1), nn.SiLU(), nn.Conv2d(32, 48, 3, 2, 1), nn.SiLU(), nn.Conv2d(48, 64, 3, 2, 1), nn.SiLU()),
            *(nn.Flatten(), nn.Linear(64 * 16, 128), nn.SiLU(), nn.Linear(128, shapes + 1 + colors)),
        )

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits of shapes and of colors for crops with shape $(B, 3, 15, 15)$."""
        told = self.net(crops * 2 - 1)
        return told[:, : self.shapes + 1], told[:, self.shapes + 1 :]


def crops(images: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Returns squares around places of pictures, with shape $(P, 3, 15, 15)$.

    Args:
        images: From `widened`.
        rows: Which pictures, with shape $(P,)$.
        places: Row and column of the middles, whole numbers with shape $(P, 2)$.
    """
    around = torch.arange(2 * HALF + 1)
    down, right = places[:, :1] + around, places[:, 1:] + around
    return images[rows[:, None, None], :, down[:, :, None], right[:, None]].permute(0, 3, 1, 2)


def widened(images: Tensor) -> Tensor:
    """Returns pictures whose borders are repeated beyond them, so that there are crops around each pixel."""
    return F.pad(images, (HALF,) * 4, mode="replicate")


def middles(masks: Tensor) -> Tensor:
    """Returns the middles of masks that are not empty, rounded, with shape $(P, 2)$."""
    line, weight = torch.arange(masks.shape[-1]).float(), masks.float()
    total = weight.sum((1, 2))
    return torch.stack([weight.sum(2) @ line / total, weight.sum(1) @ line / total], 1).round().long()


def judge_of(world: str, seconds: float, parts: Path, data: Path) -> Judge:
    """Returns the judge of a world; trains it if it is not there."""
    kept = parts / f"judge-{world}.pt"
    if not kept.exists():
        judge = trained_judge(labelled(world, JUDGED, JUDGE_SEED, data), seconds, turned=not world.startswith("tetris"))
        parts.mkdir(parents=True, exist_ok=True)
        torch.save({"shapes": judge.shapes, "colors": judge.colors, "weights": judge.state_dict()}, kept)
    found = torch.load(kept)
    judge = Judge(found["shapes"], found["colors"])
    judge.load_state_dict(found["weights"])
    return judge.eval()


def trained_judge(scenes: Labelled, seconds: float, turned: bool) -> Judge:
    """Returns a judge that was trained on crops at objects, and at places where there is nothing, one for three.

    Args:
        scenes: What it is shown.
        seconds: Of training.
        turned: Whether crops are turned, which is right where an object that is turned keeps its shape's name.
    """
    rows, which = (scenes.shape >= 0).nonzero(as_tuple=True)
    places = middles(scenes.masks[rows] == which[:, None, None] + 1)
    shapes, colors = int(scenes.shape.max()) + 1, int(scenes.color.max()) + 1
    empty = torch.randint(scenes.masks.shape[-1], (len(rows), 2), generator=torch.Generator().manual_seed(0))
    near = F.max_pool2d((scenes.masks > 0).float()[:, None], 5, 1, 2)[:, 0] > 0
    free = ~near[rows, empty[:, 0], empty[:, 1]]
    torch.manual_seed(0)
    judge, images = Judge(shapes, colors), widened(scenes.images)

    def loss(batch: Tensor, step: int) -> Tensor:
        here = batch[: len(batch) * 3 // 4]
        moved = (places[here] + torch.randint(-1, 2, (len(here), 2))).clamp(0, scenes.masks.shape[-1] - 1)
        nothing = batch[len(here) :][free[batch[len(here) :]]]
        x = crops(images, torch.cat([rows[here], rows[nothing]]), torch.cat([moved, empty[nothing]]))
        shape, color = judge(_worn(x, turned))
        truth = torch.cat([scenes.shape[rows[here], which[here]], torch.full((len(nothing),), shapes)])
        return F.cross_entropy(shape, truth) + F.cross_entropy(color[: len(here)], scenes.color[rows[here], which[here]])

    fit(loss, judge.parameters(), len(rows), Budget(seconds, batch=64), 0)
    return judge.eval()


def _worn(x: Tensor, turned: bool) -> Tensor:
    """Returns crops, half of them blurred, with noise, and where asked turned by quarters and mirrored."""
    if turned:
        x = torch.rot90(x, int(torch.randint(4, ())), (2, 3))
        x = x.flip(3) if torch.rand(()) < 0.5 else x
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(3, 1, 3, 3)
    soft = F.conv2d(F.pad(x, (1,) * 4, mode="replicate"), kernel, groups=3)
    x = torch.where(torch.rand(len(x), 1, 1, 1) < BLURRED, soft, x)
    return x + 0.05 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


@torch.no_grad()
def judged(judge: Judge, images: Tensor, rows: Tensor, places: Tensor, shape: Tensor, color: Tensor) -> dict[str, float]:
    """Returns how often the judge finds shapes, colors and both at places of pictures."""
    shapes, colors = judge(crops(widened(images), rows, places))
    right, tone = shapes.argmax(1) == shape, (colors.argmax(1) == color) & (shapes.argmax(1) < judge.shapes)
    return {name: float(found.float().mean()) for name, found in (("shape", right), ("color", tone), ("both", right & tone))}


def pairs_of(scenes: Labelled, n: int, seed: int = 0) -> Pairs:
    """Returns pairs of pictures and objects, drawn anew where B's object would not stand apart from A's others."""
    generator = np.random.default_rng(seed)
    there = [np.flatnonzero(row >= 0) for row in scenes.shape.numpy()]
    grown = 2 * APART + 1
    found: list[tuple[int, int, int, int]] = []
    while len(found) < n:
        a, b = generator.choice(len(scenes.images), 2, replace=False).tolist()
        i, j = int(generator.choice(there[a])), int(generator.choice(there[b]))
        others = (scenes.masks[a] > 0) & (scenes.masks[a] != i + 1)
        reach = F.max_pool2d((scenes.masks[b] == j + 1).float()[None, None], grown, 1, APART)[0, 0] > 0
        if not bool((others & reach).any()):
            found.append((a, b, i, j))
    return Pairs(*torch.tensor(found).unbind(1))


def owners(comet: Comet, scenes: Labelled, rows: Tensor, which: Tensor, merge: float) -> list[list[int]]:
    """Returns the components of objects: the one that has most of an object's pixels, and those whose scores have a cosine to its."""
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


def swapped(comet: Comet, scenes: Labelled, pairs: Pairs, merge: float) -> Tensor:
    """Returns A with the parts of B's object in place of those of A's, with shape $(P, 3, S, S)$."""
    out, taken = owners(comet, scenes, pairs.a, pairs.of_a, merge), owners(comet, scenes, pairs.b, pairs.of_b, merge)
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


def measured(comet: Comet, judge: Judge, scenes: Labelled, pairs: Pairs, mixed: Tensor) -> list[dict[str, Any]]:
    """Returns a row of figures for each of the pictures that the judge looks at."""
    x = scenes.images
    rebuilt = comet.decode(comet.encode(x))
    each = torch.arange(len(pairs.a))
    of_b, of_a = (middles(scenes.masks[rows] == which[:, None, None] + 1) for rows, which in ((pairs.b, pairs.of_b), (pairs.a, pairs.of_a)))
    wanted = scenes.shape[pairs.b, pairs.of_b], scenes.color[pairs.b, pairs.of_b]
    rows = [
        {"pictures": "renders", **judged(judge, x, pairs.b, of_b, *wanted)},
        {"pictures": "rebuilt", **judged(judge, rebuilt, pairs.b, of_b, *wanted)},
        {"pictures": "swapped", **judged(judge, mixed, each, of_b, *wanted)},
    ]
    stayed = scenes.shape[pairs.a] >= 0
    stayed[each, pairs.of_a] = False
    pair, one = stayed.nonzero(as_tuple=True)
    places = middles(scenes.masks[pairs.a[pair]] == one[:, None, None] + 1)
    rows.append(
        {"pictures": "kept", **judged(judge, mixed, pair, places, scenes.shape[pairs.a[pair], one], scenes.color[pairs.a[pair], one])}
    )
    rows.append({"pictures": "before", **judged(judge, x, pairs.a, of_b, *wanted)})
    free = (of_a - of_b).abs().amax(1) > HALF
    with torch.no_grad():
        nothing = judge(crops(widened(mixed), each[free], of_a[free]))[0].argmax(1) == judge.shapes
    rows.append({"pictures": "gone", "nothing": float(nothing.float().mean()), "of": int(free.sum())})
    return rows


def three(comet: Comet, scenes: Labelled, n: int, merge: float) -> list[Tensor]:
    """Returns rows of pictures: of n times three pictures, and of one object of each, which stand apart, together."""
    pairs = pairs_of(scenes, 40 * n, 1)
    grown = 2 * APART + 1
    a, b = (
        F.max_pool2d((scenes.masks[rows] == which[:, None, None] + 1).float(), grown, 1, APART)
        for rows, which in ((pairs.a, pairs.of_a), (pairs.b, pairs.of_b))
    )
    apart = (a[:-1] + b[:-1] + a[1:]).amax((1, 2)) < 2  # two objects of a pair, and one of the next
    chosen = apart.nonzero()[:n]
    n = len(chosen)
    first, second, third = chosen[:, 0], chosen[:, 0], chosen[:, 0] + 1
    rows = torch.cat([pairs.a[first], pairs.b[second], pairs.a[third]])
    which = torch.cat([pairs.of_a[first], pairs.of_b[second], pairs.of_a[third]])
    taken, z = owners(comet, scenes, rows, which, merge), comet.encode(scenes.images[rows])
    energy = comet.energy
    together = [
        comet.recombine([energy.given(z=z[i + part * n, k][None]) for part in range(3) for k in taken[i + part * n]])[0] for i in range(n)
    ]
    return [*scenes.images[rows].split(n), torch.stack(together)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plan", nargs="+", choices=list(PLANS), default=list(SCORED), help="of objects.py")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--merge", type=float, default=0.6, help="the cosine above which components are parts of one object")
    parser.add_argument("--judge", type=float, default=60.0, help="seconds of training of the judge")
    parser.add_argument("--write", action="store_true", help="write figures and pictures into the repository")
    parser.add_argument("--data", type=Path, default=CACHE, help="where renders are kept")
    parser.add_argument("--parts", type=Path, default=CACHE / "objects", help="where the models of objects.py are kept")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: list[Mapping[str, Any]] = []
    for plan in asked.plan:
        world = PLANS[plan].world
        judge, scenes = judge_of(world, asked.judge, asked.parts, asked.data), labelled(world, TEST, 3, asked.data)
        pairs, chance = pairs_of(scenes, PAIRS), 1 / judge.shapes / judge.colors
        for seed in asked.seed:
            comet = fitted(plan, seed, asked.parts, asked.data)[0]
            mixed = swapped(comet, scenes, pairs, asked.merge)
            rows = measured(comet, judge, scenes, pairs, mixed)
            show(f"{plan}, seed {seed}; by chance both are right in {chance:.3f}", rows)
            results.append({"model": plan, "seed": seed, "chance": chance, "rows": rows})
            if asked.write and seed == asked.seed[0]:
                shown, scale = slice(12), 2 if scenes.images.shape[-1] >= 32 else 4
                pictures = [scenes.images[pairs.a[shown]], scenes.images[pairs.b[shown]], mixed[shown]]
                write(PICTURES / f"recombination-{plan}.png", strip([*pictures, *three(comet, scenes, 12, asked.merge)], scale))
    if asked.write:
        told = about(pairs=PAIRS, merge=asked.merge, judge_seconds=asked.judge)
        write(RESULTS / "recombination.json", {"about": told, "runs": results})


if __name__ == "__main__":
    main()
