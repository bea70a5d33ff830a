"""What the experiments share: options, energies to ask for, conditions drawn for each picture, and what the judge sees.

Pictures and conditions of an experiment come from seeds that no training uses: energies are trained on seed 1 of the world, the judge on
seed 2, and its accuracy is told on seed 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy_scenes import COLORS, KINDS, SIZES, Concepts, Judge, OneObject, Verdict, judge_images, load_concepts, load_judge
from composable_energy_scenes.concepts import SAMPLING
from composable_energy_scenes.weights import FOLDER

__all__ = [
    "RADIUS",
    "SAMPLER",
    "TOLERANCE",
    "WEIGHT",
    "Claim",
    "Heads",
    "Options",
    "accuracy",
    "asked",
    "drawn",
    "free",
    "near",
    "renders",
    "share",
]

TOLERANCE = 0.4
"""How far a position may be off on each axis, the rule of the paper."""

SAMPLER = {"sampler": SAMPLING.sampler, **SAMPLING.options}
"""How expressions of codes are sampled in all experiments: as the concepts recommend."""

WEIGHT = 8.0
"""Of the evidence in expressions of heads, `E.sharpened(WEIGHT)`; it was chosen on other seeds, see `table1.py`."""

RADIUS = 0.2
"""How near a position is asked for; it is right within `TOLERANCE`."""

JUDGED_SEED = 3


@dataclass(frozen=True)
class Options:
    """What every experiment is told.

    Args:
        samples: Pictures of each row.
        seed: Of conditions and samples; settings were chosen on other seeds.
        weights: Where the weights lie.
    """

    samples: int = 1000
    seed: int = 11
    weights: Path = FOLDER

    @cached_property
    def concepts(self) -> Concepts:
        return load_concepts(self.weights)

    @cached_property
    def judge(self) -> Judge:
        return load_judge(self.weights)

    def judged(self, images: Tensor) -> Verdict:
        """Returns what the judge sees."""
        return judge_images(images, self.judge)


def drawn(energy: Any, n: int, seed: int, **changes: Any) -> Tensor:
    """Returns pictures of an energy, with shape $(n, 3, 64, 64)$, by `SAMPLER` or with other options."""
    return energy.sample(n, seed=seed, **{**SAMPLER, **changes})


class Heads:
    """The evidence of the concepts over a base of choice; a color or a shape may be another one for each chain."""

    def __init__(self, concepts: Concepts, base: ce.Energy | None = None) -> None:
        base = concepts.base if base is None else base
        self.position = ce.GaussianHead(concepts.position.network, base, dims=2, name="position")
        self.size = ce.GaussianHead(concepts.size.network, base, dims=1, name="size")
        self._color = ce.ClassifierEnergy(concepts.color().logits, None, base, labels=len(COLORS), name="color")
        self._shape = ce.ClassifierEnergy(concepts.shape().logits, None, base, labels=len(KINDS), name="shape")

    def place(self, c: Tensor) -> ce.Energy:
        """Returns the event that the object is within `RADIUS` of a position."""
        return self.position.near(c, RADIUS)

    def color(self, classes: int | Tensor) -> ce.Energy:
        return self._color.given(y=classes)

    def shape(self, classes: int | Tensor) -> ce.Energy:
        return self._shape.given(y=classes)


@dataclass(frozen=True)
class Claim:
    """An energy together with what it says of a picture; `&`, `|`, `~` and `>>` act on both.

    Args:
        energy: The energy.
        holds: Which pictures it holds for, given what the judge sees.
        text: How it is written.
        deep: How many operators stand inside one another.
    """

    energy: ce.Energy
    holds: Callable[[Verdict], Tensor]
    text: str
    deep: int = 0

    def __and__(self, other: Claim) -> Claim:
        return self._joined("&", other, self.energy & other.energy, lambda v: self.holds(v) & other.holds(v))

    def __or__(self, other: Claim) -> Claim:
        return self._joined("|", other, self.energy | other.energy, lambda v: self.holds(v) | other.holds(v))

    def __rshift__(self, other: Claim) -> Claim:
        return self._joined(">>", other, self.energy >> other.energy, lambda v: ~self.holds(v) | other.holds(v))

    def __invert__(self) -> Claim:
        return Claim(~self.energy, lambda v: ~self.holds(v), f"~{self.text}", 1 + self.deep)

    def _joined(self, sign: str, other: Claim, energy: ce.Energy, holds: Callable[[Verdict], Tensor]) -> Claim:
        return Claim(energy, holds, f"({self.text} {sign} {other.text})", 1 + max(self.deep, other.deep))

    def drawn(self, options: Options, weight: float = WEIGHT, **changes: Any) -> tuple[float, Tensor, Verdict]:
        """Returns the share of pictures that it holds for, the pictures, and what the judge sees."""
        images = drawn(self.energy.sharpened(weight), options.samples, options.seed, **changes)
        seen = options.judged(images)
        return share(self.holds(seen)), images, seen


def asked(n: int, seed: int) -> dict[str, Tensor]:
    """Returns random conditions, one of each kind for each picture: position, color, shape, size."""
    random = np.random.default_rng([seed, 2020])
    return {
        "position": torch.from_numpy(random.uniform(-1, 1, (n, 2)).astype("float32")),
        "color": torch.from_numpy(random.integers(len(COLORS), size=n)),
        "shape": torch.from_numpy(random.integers(len(KINDS), size=n)),
        "size": torch.from_numpy(random.uniform(*SIZES, n).astype("float32")),
    }


def renders(n: int, seed: int, start: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns rendered pictures of a seed in [0, 1], with shape $(n, 3, 64, 64)$, and their labels."""
    scenes = OneObject().draw(n, seed, start)
    return torch.from_numpy(scenes.images).float() / 255, {name: torch.from_numpy(value) for name, value in scenes.labels.items()}


def near(seen: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Returns which positions, with shape $(B, 2)$, are within the tolerance on both axes."""
    return ((seen - wanted).abs() < tolerance).all(1)


def share(right: Tensor) -> float:
    """Returns the share that is true."""
    return float(right.float().mean())


def accuracy(judge: Judge, n: int = 2000) -> dict[str, float]:
    """Returns how the judge does on renders of a seed of their own."""
    images, truth = renders(n, JUDGED_SEED)
    seen = judge_images(images, judge)
    return {
        "position within .4": share(near(seen.position, truth["position"])),
        "position error": float((seen.position - truth["position"]).abs().mean()),
        "size error": float((seen.size - truth["size"]).abs().mean()),
        "shape": share(seen.shape == truth["shape"]),
        "color": share(seen.color == truth["color"]),
        "light cosine": float(torch.cosine_similarity(seen.light, truth["light"]).mean()),
    }


def free(seen: Verdict) -> dict[str, Any]:
    """Returns how pictures are spread over what may not have been asked for: mean size, shares of shapes and colors."""
    return {
        "size": float(seen.size.mean()),
        "size spread": float(seen.size.std()),
        "position spread": float(seen.position.std(0).mean()),
        "shapes": [share(seen.shape == k) for k in range(len(KINDS))],
        "colors": [share(seen.color == k) for k in range(len(COLORS))],
    }
