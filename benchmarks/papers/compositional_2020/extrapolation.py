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

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Options, grid, main, show
from composable_energy_image import CodeHeads
from composable_energy_image.code_energy import CodeNetwork
from composable_energy_scenes import COLORS, KINDS, SIZES, Judge, OneObject, judged
from composable_energy_scenes.fitting import Fitting
from torch import Tensor, nn
from where_and_what import WHAT, WHERE, Painting, WhereAndWhat, silhouettes

import composable_energy as ce
from composable_energy.data import Pictures, Scenes
from composable_energy.training import Batch, DenoisingScoreMatching, Loss, Objective, Optimizer, Trainer, ValueHeads

RATIOS = (0.01, 0.1, 1.0)
SIDE = 20  # positions on a side, and sizes
POSITIONS = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij"), -1).reshape(-1, 2)
STEPS = np.linspace(*SIZES, SIDE)
LEVELS = (0.02, 4.0)  # of noise
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
SEEDS = {"position": 31, "size": 32, "judge": 33}  # of the world's lamps and floors
PICTURES = {"position": 4_000, "size": 8_000, "judge": 10_000}
CACHE = Path(__file__).parents[3] / ".cache" / "compositional-2020" / "extrapolation"


def selected(ratio: float) -> np.ndarray:
    """Returns the positions that show all sizes: the first int(400 ratio) + 1 of them, as in the code that the authors released."""
    return np.arange(min(int(len(POSITIONS) * ratio) + 1, len(POSITIONS)))


def unseen(ratio: float) -> np.ndarray:
    """Returns the pairs of a position and a size that are asked for, with shape $(N, 2)$: those that no set has, or all if none is left."""
    pairs = np.stack(np.meshgrid(np.arange(len(POSITIONS)), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2)
    new = (pairs[:, 0] > selected(ratio)[-1]) & (pairs[:, 1] < SIDE - 1)
    return pairs[new] if new.any() else pairs


def balls(n: int, seed: int, position: np.ndarray, size: np.ndarray) -> Scenes:
    """Returns pictures of red balls under random lamps on random floors."""
    world = OneObject()
    told = {"position": position, "size": size, "shape": np.full(n, KINDS.index("sphere")), "color": np.full(n, COLORS.index("red"))}
    return world.render(world.labels(n, seed) | told)


def shown(ratio: float) -> dict[str, np.ndarray]:
    """Returns the pairs of a position and a size that each concept is trained on, with shape $(N, 2)$, as often as they are."""
    places, pair = selected(ratio), np.arange(PICTURES["size"])
    large = np.arange(PICTURES["position"]) % len(POSITIONS)
    return {
        "position": np.stack([large, np.full_like(large, SIDE - 1)], 1),
        "size": np.stack([places[pair // SIDE % len(places)], pair % SIDE], 1),
    }


class Part(ce.Energy):
    """The energy of some numbers of a code; the rest is free."""

    def __init__(self, numbers: slice, decoder: WhereAndWhat, name: str) -> None:
        super().__init__()
        self.numbers, self.decoder, self.name, self.event_shape = numbers, decoder, name, (WHERE + WHAT,)
        self.net = CodeNetwork(len(range(*numbers.indices(WHERE + WHAT))), width=128, blocks=3)

    def forward(self, x: Tensor, sigma: Tensor | float = LEVELS[0]) -> Tensor:
        return self.net(x[:, self.numbers], sigma=sigma)


class Reader(nn.Module):
    """A head that reads some numbers of a code."""

    def __init__(self, numbers: slice, outputs: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.head = CodeHeads(outputs, code=len(range(*numbers.indices(WHERE + WHAT))), width=128, sigma_min=LEVELS[0])

    def forward(self, z: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        return self.head(z[:, self.numbers], sigma)


class Sum(nn.Module):
    """A head that adds what it reads from *where* and from *what*, so that it holds for pairs of both that it never saw."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.where, self.what = Reader(slice(0, WHERE), outputs), Reader(slice(WHERE, None), outputs)

    def forward(self, z: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        return self.where(z, sigma) + self.what(z, sigma)


class Holistic(ce.Energy):
    """A baseline: one energy of codes, or of some of their numbers, given position and size."""

    def __init__(self, numbers: slice, decoder: WhereAndWhat, name: str, width: int) -> None:
        super().__init__()
        self.numbers, self.decoder, self.name, self.event_shape = numbers, decoder, name, (WHERE + WHAT,)
        self.net = CodeNetwork(len(range(*numbers.indices(WHERE + WHAT))), width=width, blocks=4, conditions=21)

    def forward(self, x: Tensor, y: Tensor, sigma: Tensor | float = LEVELS[0]) -> Tensor:
        return self.net(x[:, self.numbers], sigma=sigma, condition=waves(y))


class Answer(Objective):
    """The paper's baseline, in codes: one answer to position and size, by least squares."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        return Loss((model(waves(batch.labels["y"])) - batch.x).square().mean())


def waves(y: Tensor) -> Tensor:
    """Returns what networks are told of positions and sizes with shape $(B, 3)$: numbers, sines and cosines, with shape $(B, 21)$."""
    angles = [y * (math.pi / 2 * wave) for wave in (1, 2, 4)]
    return torch.cat([y, *(f(angle) for angle in angles for f in (torch.sin, torch.cos))], 1)


def scaled(size: Tensor) -> Tensor:
    """Returns sizes in [-1, 1]."""
    return (size - sum(SIZES) / 2) / ((SIZES[1] - SIZES[0]) / 2)


@dataclass(frozen=True)
class Lesson:
    """All that is trained at a ratio.

    Attributes:
        ratio: Of the positions that show all sizes.
        seed: Of the trainings.
    """

    ratio: float
    seed: int = 0

    @cached_property
    def scenes(self) -> dict[str, Scenes]:
        pairs = shown(self.ratio)
        return {name: balls(len(pair), SEEDS[name], POSITIONS[pair[:, 0]], STEPS[pair[:, 1]]) for name, pair in pairs.items()}

    @cached_property
    def coder(self) -> WhereAndWhat:
        images = np.concatenate([scenes.images for scenes in self.scenes.values()])
        coder = self._fresh(WhereAndWhat)
        coder.measure(torch.cat([silhouettes(part) for part in _parts(images)]))
        self._fit("autoencoder", coder, Painting(), Pictures(images, {}, "balls"), 300, 64)
        coder.settle(_parts(images))
        return coder

    @cached_property
    def codes(self) -> dict[str, Tensor]:
        coder = self.coder
        with torch.no_grad():
            return {name: torch.cat([coder.encode(part) for part in _parts(scenes.images)]) for name, scenes in self.scenes.items()}

    @cached_property
    def base(self) -> ce.Energy:
        codes = torch.cat(list(self.codes.values()))
        where, what = (
            self._fit(name, self._fresh(Part, numbers, self.coder, name), DenoisingScoreMatching(*LEVELS), codes, 700)
            for name, numbers in (("where", slice(0, WHERE)), ("what", slice(WHERE, None)))
        )
        return where & what

    @cached_property
    def position(self) -> ce.GaussianHead:
        numbers = torch.from_numpy(self.scenes["position"].labels["position"])
        data = self.codes["position"], {"position": numbers}
        reader = self._fit("position", self._fresh(Reader, slice(0, WHERE), 4), ValueHeads("position", 2, *LEVELS), data, 600, decay=1e-2)
        return ce.GaussianHead(reader, self.base, dims=2, name="position")

    @cached_property
    def tuned_position(self) -> ce.GaussianHead:
        """The position energy if it is told the position in the size energy's pictures as well."""
        numbers = [torch.from_numpy(scenes.labels["position"]) for scenes in self.scenes.values()]
        data = torch.cat(list(self.codes.values())), {"position": torch.cat(numbers)}
        reader = self._fit("tuned-position", self._fresh(Sum, 4), ValueHeads("position", 2, *LEVELS), data, 600, decay=1e-2)
        return ce.GaussianHead(reader, self.base, dims=2, name="position")

    @cached_property
    def size(self) -> ce.GaussianHead:
        data = self.codes["size"], {"size": scaled(torch.from_numpy(self.scenes["size"].labels["size"]))}
        reader = self._fit("size", self._fresh(Reader, slice(None), 2), ValueHeads("size", 1, *LEVELS), data, 600, decay=1e-2)
        return ce.GaussianHead(reader, self.base, dims=1, name="size")

    @cached_property
    def holistic(self) -> ce.Energy:
        return self._holistic("holistic", slice(None), 1400, 232)

    @cached_property
    def holistic_parts(self) -> ce.Energy:
        """The same with *where* and *what* independent given position and size."""
        return self._holistic("holistic-where", slice(0, WHERE), 700, 144) & self._holistic("holistic-what", slice(WHERE, None), 700, 144)

    @cached_property
    def answer(self) -> nn.Module:
        return self._fit("answer", self._fresh(_answering), Answer(), self._told, 1400)

    @property
    def _told(self) -> tuple[Tensor, dict[str, Tensor]]:
        """All codes, with position and size of each."""
        y = [condition(scenes.labels["position"], scenes.labels["size"]) for scenes in self.scenes.values()]
        return torch.cat(list(self.codes.values())), {"y": torch.cat(y)}

    def _holistic(self, name: str, numbers: slice, steps: int, width: int) -> Any:
        objective = DenoisingScoreMatching(*LEVELS, condition="y")
        return self._fit(name, self._fresh(Holistic, numbers, self.coder, name, width), objective, self._told, steps)

    def _fresh(self, make: Any, *options: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return make(*options)

    def _fit(self, name: str, model: Any, objective: Objective, data: Any, steps: int, batch: int = 256, decay: float = 1e-4) -> Any:
        optimizer = Optimizer(rate=2e-3, betas=(0.9, 0.999), weight_decay=decay, warm_up=100, decay=0.7, clip=1.0)
        folder = CACHE / f"{self.ratio}-{self.seed}" / name
        options = {"out": folder, "seed": self.seed, "optimizer": optimizer, "ema": 0.995, "keep": 1, "monitor": None}
        Trainer(model, objective, data, steps=steps, batch_size=batch, **options).fit()
        return model.eval().requires_grad_(False)


def condition(position: np.ndarray, size: np.ndarray) -> Tensor:
    """Returns what baselines are told, with shape $(B, 3)$."""
    return torch.cat([torch.from_numpy(np.float32(position)), scaled(torch.from_numpy(np.float32(size)))[:, None]], 1)


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
        found = judged(images, judge)
        off = float((found.position - torch.from_numpy(place)).abs().mean())
        wrong = float((found.size - torch.from_numpy(size)).abs().mean())
        yield {"ratio": lesson.ratio, "": name, "position error": off, "size error": wrong, "sum": off + wrong}, images


def regressor() -> Judge:
    """Returns the judge of these balls: position and size of every kind, from seeds of its own."""
    n, random = PICTURES["judge"], np.random.default_rng(SEEDS["judge"])
    scenes = balls(n, SEEDS["judge"], random.uniform(-1, 1, (n, 2)), random.uniform(*SIZES, n))
    return Fitting(CACHE, SEEDS["judge"]).judge(scenes.images, {name: torch.from_numpy(v) for name, v in scenes.labels.items()}, 800)


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


def _answering() -> nn.Module:
    return nn.Sequential(nn.Linear(21, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, WHERE + WHAT))


def _parts(images: np.ndarray) -> Iterator[Tensor]:
    for first in range(0, len(images), 500):
        yield torch.from_numpy(images[first : first + 500]).float() / 255


if __name__ == "__main__":
    main("extrapolation", __doc__, run, samples=500)
