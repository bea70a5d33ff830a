r"""Pictures of one class that become another: `E.given(y=b).sample(init=x)` (the slides' cross-class mapping).

    python -m benchmarks.papers.implicit_2019.cross_class [--write]

One conditional energy is trained by contrastive divergence on scikit-learn's digits. Chains of the energy of class b start at test digits
of other classes. A classifier that took no part in the training reads the result. Distances are Euclidean, of 64 pixels in [0, 1]: to the
start; for comparison, of the start to a random test digit of class b and to the nearest one, and to a chain that starts at noise. Settings
were chosen on seed 100.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.handwritten import Judge, LabelledPixels, load_digits, train_judge
from benchmarks.harness import read_options
from benchmarks.papers.experiment import IMPLICIT, arrange_rows, print_table
from benchmarks.papers.implicit_2019.continual_learners import CLASSES, Divergence

SEEDS, TRAINING, STEPS, SIDE = (0, 1), 400, (5, 10, 20, 50, 100), 8
FROM, TO = (1, 3, 4, 7, 9, 0), (7, 8, 9, 2, 4, 6)  # the classes of the picture


def train(digits: LabelledPixels, seed: int, steps: int = TRAINING) -> ce.Energy:
    """Returns a conditional energy that is trained on all classes."""
    learner = Divergence(digits.size, seed)
    learner.learn((digits.train, {"digit": digits.train_labels}), steps)
    return learner.model  # pyright: ignore[reportReturnType]


def moved(energy: ce.Energy, x: Tensor, target: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Returns chains of the energies of some classes that start at given pictures."""
    return energy.given(y=target).sample(len(x), sampler="langevin", steps=steps, init=x, seed=seed, **Divergence.options)


def measure(energy: ce.Energy, judge: Judge, digits: LabelledPixels, seed: int) -> list[dict[str, float]]:
    """Returns the figures of one energy, for each number of steps."""
    x, labels = digits.test, digits.test_labels
    generator = torch.Generator().manual_seed(seed)
    target = (labels + torch.randint(1, CLASSES, labels.shape, generator=generator)) % CLASSES
    noise = torch.rand(x.shape, generator=generator)
    between = torch.cdist(x, x).masked_fill(labels[None] != target[:, None], torch.nan)
    rows = [{"steps": 0, **figures(judge, x, x, target)}]
    for steps in STEPS:
        found, fresh = moved(energy, x, target, steps, seed), moved(energy, noise, target, steps, seed)
        other = figures(judge, fresh, x, target)
        rows.append({"steps": steps, **figures(judge, found, x, target), **{f"{name}, from noise": other[name] for name in other}})
    for row in rows:
        row |= {"random of b": between.nanmean().item(), "nearest of b": between.nan_to_num(torch.inf).amin(1).mean().item()}
    return rows


def figures(judge: Judge, found: Tensor, x: Tensor, target: Tensor) -> dict[str, float]:
    """Returns the share of pictures that the judge reads as their target, and their mean distance to the starts."""
    return {"read as b": (judge(found).argmax(1) == target).float().mean().item(), "distance": (found - x).norm(dim=1).mean().item()}


def picture(energy: ce.Energy, digits: LabelledPixels) -> Tensor:
    """Returns rows of chains: the start, and the picture after each number of steps."""
    starts = torch.stack([digits.test[digits.test_labels == c][0] for c in FROM])
    frames = [starts, *(moved(energy, starts, torch.tensor(TO), steps) for steps in STEPS)]
    return arrange_rows(
        [torch.stack([1 - frame[i] for frame in frames]).view(-1, 1, SIDE, SIDE).expand(-1, 3, -1, -1) for i in range(len(FROM))],
        scale=6,
        gap=1,
    )


def run(seeds: list[int]) -> dict[str, Any]:
    """Prints the table and returns its figures."""
    runs, sheet, right = [], torch.zeros(3, 1, 1), []
    for seed in seeds:
        digits = load_digits(seed)
        energy, judge = train(digits, seed), train_judge(digits.train, digits.train_labels, seed)
        right.append((judge(digits.test).argmax(1) == digits.test_labels).float().mean().item())
        runs.append(measure(energy, judge, digits, seed))
        if seed == seeds[0]:
            sheet = picture(energy, digits)
    rows = [{name: statistics.fmean(row[name] for row in same) for name in same[0]} for same in zip(*runs, strict=True)]
    print_table("Chains from digits of other classes", rows)
    return {"rows": rows, "runs": runs, "judge": statistics.fmean(right), "picture": sheet}


def main() -> None:
    args = read_options(__doc__, IMPLICIT.results / "cross_class.json", seeds=list(SEEDS))
    found = run(args.seeds)
    sheet = found.pop("picture")
    if args.write:
        IMPLICIT.write("cross_class", found, sheet, seeds=args.seeds, training=TRAINING)


if __name__ == "__main__":
    main()
