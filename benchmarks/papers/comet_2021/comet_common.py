"""What the experiments share: worlds as tensors, training for so many seconds of a processor, tables, pictures, files of results.

Pictures are rendered once into a folder, `--data`, and read from there. Seed 1 of a world is trained on, seed 2 chooses settings, seed 3
is scored.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_image.data import render_to

__all__ = [
    "CACHE",
    "PICTURES",
    "RESULTS",
    "SLOW",
    "WORLDS",
    "Budget",
    "Room",
    "Scenes",
    "about",
    "fit",
    "objects",
    "room",
    "show",
    "strip",
    "write",
]

ROOT = Path(__file__).parents[3]
CACHE = ROOT / ".cache" / "comet-2021"
RESULTS = ROOT / "benchmarks" / "results" / "comet-2021"
PICTURES = ROOT / "docs" / "img" / "comet-2021"
SEEDS = {"train": 1, "validation": 2, "test": 3}
SLOW = 0.05
"""The share of the rate for what was trained before: an encoder that convolutional energies begin with."""

WORLDS: Mapping[str, tuple[str, dict[str, Any], int]] = {
    "sprites": ("colored-sprites", {"size": 32, "count": (2, 3)}, 1),
    "tetris": ("tetris", {"size": 32, "cells": 8}, 1),
    "tetris-16": ("tetris", {"size": 32, "cells": 8}, 2),
    "objects-16": ("objects", {"size": 64, "count": (2, 4), "sizes": (0.26, 0.38)}, 4),
    "objects-32": ("objects", {"size": 64, "count": (2, 4), "sizes": (0.26, 0.38)}, 2),
}
"""Worlds with masks: name, options, and how many pixels of a side become one. Objects are rendered at 64 pixels and averaged."""


@dataclass(frozen=True)
class Scenes:
    """Pictures in [0, 1] with shape $(N, 3, S, S)$, and masks with shape $(N, S, S)$: 0 for the background, $i$ for the $i$-th object."""

    images: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Room:
    """The room in 32 pixels: pictures in [0, 1], with the seven factors of each.

    Args:
        train: Pictures with random factors.
        train_factors: In [0, 1], with shape $(N, 7)$.
        test: Others.
        test_factors: Theirs.
        grid: Every combination of four values of each factor, 0, 1/3, 2/3 and 1: 16,384 pictures, the last factor fastest.
        levels: Which of the four values they have, with shape $(16384, 7)$.
    """

    train: Tensor
    train_factors: Tensor
    test: Tensor
    test_factors: Tensor
    grid: Tensor
    levels: Tensor


def room(data: Path = CACHE) -> Room:
    """Renders the room, 8,000 pictures to train on, 2,000 to test and the grid, in two minutes of one core, or reads it."""
    world = ce.get_world("room", size=32)
    parts = [render_to(data / f"room-{name}", world, n, SEEDS[name]) for name, n in (("train", 8000), ("test", 2000))]
    images = [torch.from_numpy(np.array(part.images)).float() / 255 for part in parts]
    factors = [torch.from_numpy(np.array(part.labels["factors"])) for part in parts]
    levels = np.array(list(product(range(4), repeat=7)))
    kept = data / "room-grid.npy"
    if not kept.exists():
        np.save(kept, world.render({"factors": (levels / 3).astype("float32")}).images)
    grid = torch.from_numpy(np.load(kept)).float() / 255
    return Room(images[0], factors[0], images[1], factors[1], grid, torch.from_numpy(levels))


def objects(name: str, n: int, split: str = "train", data: Path = CACHE) -> Scenes:
    """Renders the first pictures of a world with masks, or reads them.

    Args:
        name: One of `WORLDS`.
        n: How many.
        split: `train`, `validation` or `test`: the seed.
        data: The folder of all of them.
    """
    world, options, shrink = WORLDS[name]
    shown = "-".join([world, str(options["size"])])
    scenes = render_to(data / f"{shown}-{split}-{n}", ce.get_world(world, **options), n, SEEDS[split], masks=True)
    masks = torch.from_numpy(np.array(scenes.masks)).long()
    return Scenes(pooled(torch.from_numpy(np.array(scenes.images)).float() / 255, shrink), majority(masks, shrink))


def pooled(images: Tensor, shrink: int) -> Tensor:
    """Returns the means over squares of pixels, with shape $(N, C, S / shrink, S / shrink)$."""
    return images if shrink == 1 else nn.functional.avg_pool2d(images, shrink)


def majority(masks: Tensor, shrink: int) -> Tensor:
    """Returns for each square of pixels the label that most of them have, the lowest of those that tie, with shape $(N, S', S')$."""
    if shrink == 1:
        return masks
    n, size = len(masks), masks.shape[1] // shrink
    squares = masks.view(n, size, shrink, size, shrink).transpose(2, 3).flatten(3)
    counts = torch.stack([(squares == label).sum(3) for label in range(int(masks.max()) + 1)])
    return counts.argmax(0)


@dataclass(frozen=True)
class Budget:
    """How long to train: seconds of one processor, or steps where they are given. The rate of Adam rises linearly in the first
    `warm_up` steps; then it is a tenth in the last `tail` of the budget or, if `cosine`, falls to nothing as half a cosine.
    """

    seconds: float = 150.0
    steps: int | None = None
    rate: float = 1e-3
    warm_up: int = 200
    tail: float = 0.15
    cosine: bool = False
    clip: float = 1.0
    batch: int = 16

    def spent(self, seconds: float, steps: int) -> float:
        """Returns the share of the budget that is used up."""
        return seconds / self.seconds if self.steps is None else steps / self.steps

    def rate_at(self, step: int, spent: float) -> float:
        """Returns the rate of a step, from 1 on."""
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
    """Trains by Adam on random batches until the budget is spent.

    Args:
        loss: From the rows of a batch, with shape $(B,)$, and the step, from 1 on, to a number with a graph.
        parameters: What is trained.
        count: How many rows there are.
        budget: How long.
        seed: Of the order.
        slow: Those of the parameters that learn at `SLOW` of the rate.

    Returns:
        `steps`, `seconds` of the processor, and `loss`, the mean over the last tenth of all steps.
    """
    learnt, known = [parameter for parameter in parameters if parameter.requires_grad], {id(parameter) for parameter in slow}
    groups = [{"params": [one for one in learnt if (id(one) in known) == late], "share": SLOW if late else 1.0} for late in (False, True)]
    adam = torch.optim.Adam([group for group in groups if group["params"]], budget.rate, foreach=True)
    generator = torch.Generator().manual_seed(seed)
    started, steps, seconds, losses = time.process_time(), 0, 0.0, []
    while (spent := budget.spent(seconds, steps)) < 1:
        steps += 1
        for group in adam.param_groups:
            group["lr"] = group["share"] * budget.rate_at(steps, spent)
        adam.zero_grad(set_to_none=True)
        value = loss(torch.randint(count, (budget.batch,), generator=generator), steps)
        value.backward()
        nn.utils.clip_grad_norm_(learnt, budget.clip, foreach=True)
        adam.step()
        losses.append(float(value.detach()))
        seconds = time.process_time() - started
    last = losses[-max(1, steps // 10) :]
    return {"steps": steps, "seconds": seconds, "loss": sum(last) / len(last)}


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of a table; their keys are its columns, in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_text(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    print("\n".join(["", title, lines[0], "  ".join("-" * width for width in widths), *lines[1:]]), flush=True)


def strip(rows: Sequence[Tensor], scale: int = 2, gap: int = 2) -> Tensor:
    """Returns rows of pictures, each with shape $(n, 3, S, S)$, as one, with shape $(3, H, W)$, enlarged, with white between."""
    size, most = rows[0].shape[-1], max(len(row) for row in rows)
    sheet = torch.ones(3, len(rows) * (size + gap) - gap, most * (size + gap) - gap)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (size + gap), j * (size + gap)
            sheet[:, top : top + size, left : left + size] = image.detach().clamp(0, 1)
    return sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def about(**told: Any) -> dict[str, Any]:
    """Returns what figures depend on besides the code."""
    return {**told, "torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}


def write(path: Path, result: Mapping[str, Any] | Tensor) -> None:
    """Writes figures as JSON, rounded to 5 digits after the point, or a picture with shape $(3, H, W)$ as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(result, Tensor):
        pixels = result.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
        few = Image.fromarray(pixels).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)  # others merge rare, bright colors
        few.save(path, optimize=True)
    else:
        path.write_text(json.dumps(_rounded(result), indent=1) + "\n")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {str(key): _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
