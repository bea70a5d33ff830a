"""The worlds of the experiments as tensors, and trainings for a number of steps or of seconds of one processor.

Pictures are rendered once into the folder `--data` and read from there. Seed 1 of a world is for training, seed 2 for choosing settings,
and seed 3 for scores.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.papers.experiment import COMET
from composable_energy_image.data import render_to
from composable_energy_scenes import KINDS, TOYS
from composable_energy_training.precision import DTYPES, Precision, native_precision

SEEDS = (5, 6, 7)
"""Seeds of the trainings in the tables; settings were chosen on others."""


def run_experiment(name: str, doc: str | None, experiment: Callable[[Any], Iterable[Mapping[str, Any]]], **defaults: Any) -> None:
    """Runs an experiment from the command line; all have a folder of renders, and one of models and figures of parts."""
    COMET.run(name, doc, experiment, data=COMET.cache, parts=COMET.cache, **defaults)


SPLITS = {"train": 1, "validation": 2, "test": 3, "classifier": 4}
"""Seeds of the renders."""

WORLDS: Mapping[str, tuple[str, dict[str, Any], int]] = {
    "sprites": ("colored-sprites", {"size": 32, "count": (2, 3)}, 1),
    "tetris": ("tetris", {"size": 32, "cells": 8}, 1),
    "tetris-16": ("tetris", {"size": 32, "cells": 8}, 2),
    "objects-16": ("objects", {"size": 64, "count": (2, 4), "sizes": (0.26, 0.38)}, 4),
    "objects-32": ("objects", {"size": 64, "count": (2, 4), "sizes": (0.26, 0.38)}, 2),
    "solids-64": ("objects", {"size": 64, "count": (2, 4), "sizes": (0.16, 0.38)}, 1),
    "three-64": ("objects", {"size": 64, "count": (3, 3), "sizes": (0.16, 0.26)}, 1),
    "toys-64": ("objects", {"size": 64, "count": (2, 4), "sizes": (0.22, 0.40), "shapes": TOYS}, 1),
    "three-toys-64": ("objects", {"size": 64, "count": (3, 3), "sizes": (0.22, 0.32), "shapes": TOYS}, 1),
    "solids-toys-64": ("objects", {"size": 64, "count": (2, 6), "sizes": (0.16, 0.40), "shapes": (*KINDS, *TOYS)}, 1),
}
"""Worlds with masks: name, options, and the side of the squares of pixels that are averaged. Objects are rendered at 64 pixels."""


@dataclass(frozen=True)
class Scenes:
    """Pictures with masks and labels of up to $M$ objects; hidden objects have the label -1."""

    images: Tensor  # pictures in [0, 1], with shape $(N, 3, S, S)$
    masks: Tensor  # 0 for the background, $i$ for the $i$-th object, with shape $(N, S, S)$
    shape: Tensor  # shapes of the objects, with shape $(N, M)$; -1 for no object
    color: Tensor  # their colors
    labels: Mapping[str, np.ndarray]  # all labels of the world, by field


@dataclass(frozen=True)
class Room:
    """The world `room` in 32 pixels: pictures in [0, 1] with their seven factors."""

    train: Tensor  # training pictures with random factors
    train_factors: Tensor  # their factors in [0, 1], with shape $(N, 7)$
    test: Tensor  # test pictures
    test_factors: Tensor  # their factors
    grid: Tensor  # every combination of four values of each factor, 0, 1/3, 2/3 and 1: 16,384 pictures, the last factor fastest
    levels: Tensor  # index of the value of each factor of the grid, with shape $(16384, 7)$


def render_room(data: Path = COMET.cache) -> Room:
    """Renders the room in two minutes of one core, or reads it: 8,000 pictures for training, 2,000 for tests, and the grid."""
    world = ce.get("world", "room", size=32)
    parts = [render_to(data / f"room-{name}", world, n, SPLITS[name]) for name, n in (("train", 8000), ("test", 2000))]
    images = [torch.from_numpy(np.array(part.images)).float() / 255 for part in parts]
    factors = [torch.from_numpy(np.array(part.labels["factors"])) for part in parts]
    levels = np.array(list(product(range(4), repeat=7)))
    path = data / "room-grid.npy"
    if not path.exists():
        np.save(path, world.render({"factors": (levels / 3).astype("float32")}).images)
    grid = torch.from_numpy(np.load(path)).float() / 255
    return Room(images[0], factors[0], images[1], factors[1], grid, torch.from_numpy(levels))


def render_objects(name: str, n: int, split: str = "train", data: Path = COMET.cache) -> Scenes:
    """Renders the first pictures of a world with masks and labels, or reads them."""
    world, options, shrink = WORLDS[name]
    scenes = render_to(data / f"{folder_of(name)}-{split}-{n}", ce.get("world", world, **options), n, SPLITS[split], masks=True)
    masks = majority_labels(torch.from_numpy(np.array(scenes.masks)).long(), shrink)
    images = average_pixels(torch.from_numpy(np.array(scenes.images)).float() / 255, shrink)
    shape, color = (torch.from_numpy(np.array(scenes.labels[field])).long() for field in ("shape", "color"))
    visible = torch.stack([(masks == i + 1).flatten(1).any(1) for i in range(shape.shape[1])], 1)
    return Scenes(images, masks, shape.where(visible, -1), color.where(visible, -1), scenes.labels)


def folder_of(name: str) -> str:
    """Returns the beginning of the names of folders with renders of a world, which worlds that differ only in their pixels share."""
    world, options, _ = WORLDS[name]
    return name if name.endswith("-64") else f"{world}-{options['size']}"


def average_pixels(images: Tensor, shrink: int) -> Tensor:
    """Returns means over squares of pixels, with shape $(N, C, S / shrink, S / shrink)$."""
    return images if shrink == 1 else nn.functional.avg_pool2d(images, shrink)


def majority_labels(masks: Tensor, shrink: int) -> Tensor:
    """Returns the most frequent label of each square of pixels, the lowest one of a tie, with shape $(N, S', S')$."""
    if shrink == 1:
        return masks
    n, size = len(masks), masks.shape[1] // shrink
    squares = masks.view(n, size, shrink, size, shrink).transpose(2, 3).flatten(3)
    counts = torch.stack([(squares == label).sum(3) for label in range(int(masks.max()) + 1)])
    return counts.argmax(0)


PRECISION = native_precision(torch.device("cpu"))
"""The precision of trainings with `precision="auto"` on this processor."""

SLOW = 0.05
"""The share of the learning rate for parameters that were trained before: an encoder that convolutional energies start with."""


@dataclass(frozen=True)
class Budget:
    """The length and the settings of a training.

    The learning rate of Adam rises linearly in the first `warm_up` steps. Then it is constant, with a tenth in the last `tail` of the
    budget; or it falls to 0 as half a cosine, if `cosine`.
    """

    seconds: float = 150.0  # processor seconds
    steps: int | None = None  # number of steps, instead of seconds
    rate: float = 1e-3
    warm_up: int = 200  # steps of warm-up
    tail: float = 0.15  # share of the budget with a tenth of the rate
    cosine: bool = False  # whether the rate falls as half a cosine
    clip: float = 1.0  # largest norm of the gradients
    batch: int = 16
    precision: Precision = "float32"  # of the loss; trainings that are compared at equal time have float32

    def spent(self, seconds: float, steps: int) -> float:
        return seconds / self.seconds if self.steps is None else steps / self.steps

    def rate_at(self, step: int, spent: float) -> float:
        """Returns the learning rate of a step; the first step is 1."""
        left = (1 + math.cos(math.pi * spent)) / 2 if self.cosine else 0.1 if spent >= 1 - self.tail else 1.0
        return self.rate * min(1.0, step / max(self.warm_up, 1)) * left


def fit(
    loss: Callable[[Tensor, int], Tensor],
    parameters: Iterable[nn.Parameter],
    count: int,
    budget: Budget,
    seed: int = 0,
    slow: Iterable[nn.Parameter] = (),
) -> dict[str, float]:
    """Trains by Adam on random batches until the budget is used."""
    trained, known = [parameter for parameter in parameters if parameter.requires_grad], {id(parameter) for parameter in slow}
    groups = [{"params": [one for one in trained if (id(one) in known) == late], "share": SLOW if late else 1.0} for late in (False, True)]
    adam = torch.optim.Adam([group for group in groups if group["params"]], budget.rate, foreach=True)
    generator = torch.Generator().manual_seed(seed)
    precision = PRECISION if budget.precision == "auto" else budget.precision
    started, steps, seconds, losses = time.process_time(), 0, 0.0, []
    while (spent := budget.spent(seconds, steps)) < 1:
        steps += 1
        for group in adam.param_groups:
            group["lr"] = group["share"] * budget.rate_at(steps, spent)
        adam.zero_grad(set_to_none=True)
        with torch.autocast("cpu", DTYPES[precision], enabled=precision != "float32"):
            value = loss(torch.randint(count, (budget.batch,), generator=generator), steps)
        value.backward()
        nn.utils.clip_grad_norm_(trained, budget.clip, foreach=True)
        adam.step()
        losses.append(float(value.detach()))
        seconds = time.process_time() - started
    last = losses[-max(1, steps // 10) :]
    return {"steps": steps, "seconds": seconds, "loss": sum(last) / len(last)}
