"""Expressions of concepts together with their meaning: which pictures they hold for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.compositional_2020.evaluation import Attributes, share
from benchmarks.papers.compositional_2020.options import Options
from composable_energy_scenes import COLORS, KINDS, SIZES, Concepts
from composable_energy_scenes.concepts import SAMPLING

SAMPLER = {"sampler": SAMPLING.sampler, **SAMPLING.options}
"""The sampler of all experiments: the one that the concepts recommend."""

WEIGHT = 8.0
"""Weight of the evidence in expressions of heads, `E.sharpened(WEIGHT)`; it was chosen on other seeds, see `table1.py`."""

RADIUS = 0.2
"""Radius around a requested position; the position is correct within the tolerance of the evaluation."""


def draw(energy: Any, n: int, seed: int, **changes: Any) -> Tensor:
    """Returns pictures of an energy, with shape $(n, 3, 64, 64)$, by `SAMPLER` with some options changed."""
    return energy.sample(n, seed=seed, **{**SAMPLER, **changes})


def random_conditions(n: int, seed: int) -> dict[str, Tensor]:
    """Returns random values of position, color, shape and size, one of each for each picture."""
    random = np.random.default_rng([seed, 2020])
    return {
        "position": torch.from_numpy(random.uniform(-1, 1, (n, 2)).astype("float32")),
        "color": torch.from_numpy(random.integers(len(COLORS), size=n)),
        "shape": torch.from_numpy(random.integers(len(KINDS), size=n)),
        "size": torch.from_numpy(random.uniform(*SIZES, n).astype("float32")),
    }


class Heads:
    """The evidence of the concepts over a base; the value of a color or a shape may differ between chains."""

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
        """Returns the event that the object has a color."""
        return self._color.given(y=classes)

    def shape(self, classes: int | Tensor) -> ce.Energy:
        """Returns the event that the object has a shape."""
        return self._shape.given(y=classes)


@dataclass(frozen=True)
class Claim:
    """An energy and its meaning; `&`, `|`, `~` and `>>` act on both."""

    energy: ce.Energy
    holds: Callable[[Attributes], Tensor]  # returns which pictures it holds for, from their attributes
    text: str  # expression as text
    depth: int = 0  # depth of nested operators

    def __and__(self, other: Claim) -> Claim:
        return self._join("&", other, self.energy & other.energy, lambda found: self.holds(found) & other.holds(found))

    def __or__(self, other: Claim) -> Claim:
        return self._join("|", other, self.energy | other.energy, lambda found: self.holds(found) | other.holds(found))

    def __rshift__(self, other: Claim) -> Claim:
        return self._join(">>", other, self.energy >> other.energy, lambda found: ~self.holds(found) | other.holds(found))

    def __invert__(self) -> Claim:
        return Claim(~self.energy, lambda found: ~self.holds(found), f"~{self.text}", 1 + self.depth)

    def _join(self, sign: str, other: Claim, energy: ce.Energy, holds: Callable[[Attributes], Tensor]) -> Claim:
        return Claim(energy, holds, f"({self.text} {sign} {other.text})", 1 + max(self.depth, other.depth))

    def draw(self, options: Options, weight: float = WEIGHT, **changes: Any) -> tuple[float, Tensor, Attributes]:
        """Draws pictures and evaluates them."""
        images = draw(self.energy.sharpened(weight), options.samples, options.seed, **changes)
        found = options.evaluate(images)
        return share(self.holds(found)), images, found
