r"""Sizes at positions where only one size was in the training set (section 4.4 and figure 10 of the paper).

    python -m benchmarks.papers.compositional_2020.extrapolation [--write]

Red balls at 20 x 20 positions in 20 sizes. A share of the positions, column by column from the near left corner, has all sizes; the others
have only the largest. The position energy is trained on all positions with the largest size, the size energy on the share's positions with
all sizes; autoencoder and base see the same pictures without labels. The test pairs are the other sizes at the other positions, or all
pairs where the share is 1. The paper tunes its conjunction; the row *tuned* has a position energy that is trained on the positions of all
these pictures. The baselines are trained with position and size of every picture of both sets.

All use codes that separate where and what (`where_and_what.py`). The base takes the two as independent, and the position energy reads only
*where*; this is why they generalize to new pairs. The first call trains, in 8 CPU-minutes, and keeps the models in `.cache/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.compositional_2020.balls import PICTURES, POSITIONS, RATIOS, SEEDS, STEPS, balls, test_pairs
from benchmarks.papers.compositional_2020.evaluation import Evaluator, evaluate
from benchmarks.papers.compositional_2020.extrapolation_trainings import CACHE, Trainings, condition, waves
from benchmarks.papers.compositional_2020.options import Options, run_experiment
from benchmarks.papers.experiment import print_table
from composable_energy_scenes import SIZES
from composable_energy_scenes.network_trainer import NetworkTrainer

SAMPLER = {
    "sampler": "annealed",
    "levels": 40,
    "sigma_max": 4.0,
    "sigma_min": 0.02,
    "corrector_steps": 3,
    "delta": 0.1,
    "max_gradient": 3.0,
}
WEIGHT = 4.0


def rows(trainings: Trainings, options: Options, evaluator: Evaluator) -> Iterator[dict[str, Any]]:
    """Yields the rows of a ratio."""
    pairs = test_pairs(trainings.ratio)
    pairs = pairs[np.random.default_rng([options.seed, 2020]).permutation(len(pairs))[: options.samples]]
    place, size = POSITIONS[pairs[:, 0]], STEPS[pairs[:, 1]]
    wanted, n = condition(place, size), len(pairs)
    position, size_energy = wanted[:, :2], trainings.size(wanted[:, 2:])

    def sampled(energy: ce.Energy) -> Tensor:
        return energy.sample(n, seed=options.seed, **SAMPLER)

    pictures = {
        "position & size": sampled((trainings.position(position) & size_energy).sharpened(WEIGHT)),
        "tuned position & size": sampled((trainings.tuned_position(position) & size_energy).sharpened(WEIGHT)),
        "holistic": sampled(trainings.holistic.given(y=wanted)),
        "holistic, where & what": sampled(trainings.holistic_parts.given(y=wanted)),
        "holistic, one answer": trainings.coder(trainings.answer(waves(wanted))),
        "renders": torch.from_numpy(balls(n, options.seed, place, size).images).float() / 255,
    }
    for name, images in pictures.items():
        found = evaluate(images, evaluator)
        off = float((found.position - torch.from_numpy(place)).abs().mean())
        wrong = float((found.size - torch.from_numpy(size)).abs().mean())
        yield {"ratio": trainings.ratio, "": name, "position error": off, "size error": wrong, "sum": off + wrong}


def ball_evaluator() -> Evaluator:
    """Returns the evaluator of balls; it is trained on random positions and sizes."""
    n, random = PICTURES["evaluator"], np.random.default_rng(SEEDS["evaluator"])
    scenes = balls(n, SEEDS["evaluator"], random.uniform(-1, 1, (n, 2)), random.uniform(*SIZES, n))
    return NetworkTrainer(CACHE, SEEDS["evaluator"]).train_judge(
        scenes.images, {name: torch.from_numpy(v) for name, v in scenes.labels.items()}, 800
    )


def run(options: Options) -> dict[str, Any]:
    """Prints the tables and returns their figures."""
    evaluator, table = ball_evaluator(), []
    for ratio in RATIOS:
        found = list(rows(Trainings(ratio), options, evaluator))
        print_table(f"New pairs at {ratio:.0%} of the positions; errors are means over axes and pictures", found)
        table += found
    best = {row["ratio"]: row for row in table if row[""] == "position & size"}
    for row in table:
        row["ours / this"] = best[row["ratio"]]["sum"] / row["sum"]
    return {"rows": table}


if __name__ == "__main__":
    run_experiment("extrapolation", __doc__, run, samples=500)
