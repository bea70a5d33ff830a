r"""Pictures of one class that become another: `E.given(y=b).sample(init=x)` (the slides' cross-class mapping).

    python -m benchmarks.papers.implicit_2019.cross_class [--write]

One conditional energy is trained by contrastive divergence on scikit-learn's digits. Chains of the energy of class b start at test digits
of other classes. A classifier that took no part in the training reads the result. Distances to the start are Euclidean, of 64 pixels in
[0, 1]. Settings were chosen on seed 100.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.handwritten import Judge, LabelledPixels, load_digits, train_judge
from benchmarks.papers.experiment import IMPLICIT, arrange_rows
from benchmarks.papers.implicit_2019.continual_learners import CHAINS, CLASSES, divergence

SEEDS, TRAINING, STEPS, SIDE = (0, 1), 400, (5, 10, 20, 50, 100), 8
FROM, TO = (1, 3, 4, 7, 9, 0), (7, 8, 9, 2, 4, 6)  # the classes of the picture


def train(digits: LabelledPixels, seed: int, steps: int = TRAINING) -> ce.Energy:
    """Returns a conditional energy that is trained on all classes."""
    learner = divergence(digits.size, seed)
    learner.learn((digits.train, {"digit": digits.train_labels}), steps)
    return learner.model  # pyright: ignore[reportReturnType]


def moved(energy: ce.Energy, x: Tensor, target: Tensor, steps: int, seed: int = 0) -> Tensor:
    """Returns chains of the energies of some classes that start at given pictures."""
    return energy.given(y=target).sample(len(x), sampler="langevin", steps=steps, init=x, seed=seed, **CHAINS)


def measure(energy: ce.Energy, judge: Judge, digits: LabelledPixels, seed: int) -> list[dict[str, float]]:
    """Returns the figures of one energy, for each number of steps."""
    x, labels = digits.test, digits.test_labels
    target = (labels + torch.randint(1, CLASSES, labels.shape, generator=torch.Generator().manual_seed(seed))) % CLASSES
    rows = [{"steps": 0, **figures(judge, x, x, target)}]
    return rows + [{"steps": steps, **figures(judge, moved(energy, x, target, steps, seed), x, target)} for steps in STEPS]


def figures(judge: Judge, found: Tensor, x: Tensor, target: Tensor) -> dict[str, float]:
    """Returns the share of pictures that the judge reads as their target, and their mean distance to the starts."""
    return {"read as b": (judge(found).argmax(1) == target).float().mean().item(), "distance": (found - x).norm(dim=1).mean().item()}


def picture(energy: ce.Energy, digits: LabelledPixels) -> Tensor:
    """Returns rows of chains: the start, and the picture after each number of steps."""
    starts = torch.stack([digits.test[digits.test_labels == c][0] for c in FROM])
    frames = [starts, *(moved(energy, starts, torch.tensor(TO), steps) for steps in STEPS)]
    rows = [torch.stack([1 - frame[i] for frame in frames]).view(-1, 1, SIDE, SIDE).expand(-1, 3, -1, -1) for i in range(len(FROM))]
    return arrange_rows(rows, scale=6, gap=1)


def run(args: Any) -> Iterator[dict[str, Any]]:
    runs, sheets = [], []
    for seed in args.seeds:
        digits = load_digits(seed)
        energy, judge = train(digits, seed), train_judge(digits.train, digits.train_labels, seed)
        runs.append(measure(energy, judge, digits, seed))
        sheets.append(picture(energy, digits))
    rows = [{name: statistics.fmean(row[name] for row in same) for name in same[0]} for same in zip(*runs, strict=True)]
    yield {"rows": rows, "pictures": {"cross_class": sheets[0]}}


if __name__ == "__main__":
    IMPLICIT.run("cross_class", __doc__, run, seeds=list(SEEDS))
