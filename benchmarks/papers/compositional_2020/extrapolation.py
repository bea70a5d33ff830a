r"""Sizes at positions where only one size was seen (section 4.4 and figure 10 of the paper).

    python benchmarks/papers/compositional_2020/extrapolation.py [--write]

Red balls at 20 x 20 positions in 20 sizes. A ratio of the positions, column by column from the near left corner on, shows all sizes,
all others only the largest. The position energy learns from all positions in the largest size, the size energy from the ratio's positions
in all sizes; what both stand on, an autoencoder and a base, sees the same pictures without labels. They are asked for the other sizes at
the other positions, or for anything where the ratio is 1. The paper tunes its conjunction; the row *tuned* has a position energy that is
told the position in all of these pictures. The baselines are told position and size of every picture of both sets.

All read codes that say apart where and what (`where_and_what.py`). Of these the base takes the two as independent, and the position energy
reads only *where*: that is what carries over to pairs that were never seen. Trained in 8 CPU-minutes when first run, and kept in `.cache/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from balls import PICTURES, POSITIONS, RATIOS, SEEDS, STEPS, balls, unseen
from common import Options
from lesson import CACHE, Lesson, condition, waves
from reporting import grid, main, show
from torch import Tensor

import composable_energy as ce
from composable_energy_scenes import SIZES, Judge, judge_images
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


def rows(lesson: Lesson, options: Options, judge: Judge) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Yields the rows of a ratio, with the pictures of each."""
    pairs = unseen(lesson.ratio)
    pairs = pairs[np.random.default_rng([options.seed, 2020]).permutation(len(pairs))[: options.samples]]
    place, size = POSITIONS[pairs[:, 0]], STEPS[pairs[:, 1]]
    told, n = condition(place, size), len(pairs)
    position, size_energy = told[:, :2], lesson.size(told[:, 2:])

    def drawn(energy: ce.Energy) -> Tensor:
        return energy.sample(n, seed=options.seed, **SAMPLER)

    pictures = {
        "position & size": drawn((lesson.position(position) & size_energy).sharpened(WEIGHT)),
        "tuned position & size": drawn((lesson.tuned_position(position) & size_energy).sharpened(WEIGHT)),
        "holistic": drawn(lesson.holistic.given(y=told)),
        "holistic, where & what": drawn(lesson.holistic_parts.given(y=told)),
        "holistic, one answer": lesson.coder(lesson.answer(waves(told))),
        "renders": torch.from_numpy(balls(n, options.seed, place, size).images).float() / 255,
    }
    for name, images in pictures.items():
        found = judge_images(images, judge)
        off = float((found.position - torch.from_numpy(place)).abs().mean())
        wrong = float((found.size - torch.from_numpy(size)).abs().mean())
        yield {"ratio": lesson.ratio, "": name, "position error": off, "size error": wrong, "sum": off + wrong}, images


def regressor() -> Judge:
    """Returns the judge of these balls: position and size of every kind, from seeds of its own."""
    n, random = PICTURES["judge"], np.random.default_rng(SEEDS["judge"])
    scenes = balls(n, SEEDS["judge"], random.uniform(-1, 1, (n, 2)), random.uniform(*SIZES, n))
    return NetworkTrainer(CACHE, SEEDS["judge"]).train_judge(
        scenes.images, {name: torch.from_numpy(v) for name, v in scenes.labels.items()}, 800
    )


def run(options: Options) -> dict[str, Any]:
    """Runs the experiment."""
    judge, table, strips = regressor(), [], []
    for ratio in RATIOS:
        told, images = zip(*rows(Lesson(ratio), options, judge), strict=True)
        show(f"Unseen pairs at {ratio:.0%} of the positions; errors are means over axes and pictures", told)
        table += told
        strips += [pictures[:16] for pictures in (images[5], images[0], images[2], images[4])]
    best = {row["ratio"]: row for row in table if row[""] == "position & size"}
    for row in table:
        row["ours / this"] = best[row["ratio"]]["sum"] / row["sum"]
    return {"rows": table, "picture": grid(torch.cat(strips))}


if __name__ == "__main__":
    main("extrapolation", __doc__, run, samples=500)
