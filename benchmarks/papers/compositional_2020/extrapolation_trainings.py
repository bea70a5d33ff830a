"""The trainings of extrapolation: an autoencoder, a base and two heads, and baselines with position and size as conditions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.papers.compositional_2020.balls import POSITIONS, SEEDS, STEPS, balls, training_pairs
from benchmarks.papers.compositional_2020.where_and_what import WHAT, WHERE, Painting, WhereAndWhat, silhouettes
from benchmarks.papers.experiment import COMPOSITIONAL
from composable_energy_image import CodeHeads
from composable_energy_image.code_energy import CodeNetwork
from composable_energy_image.data import Pictures, Scenes
from composable_energy_scenes import SIZES
from composable_energy_training import Batch, DenoisingScoreMatching, Loss, Objective, Optimizer, Trainer, ValueHeads

LEVELS = (0.02, 4.0)  # of noise
CACHE = COMPOSITIONAL.cache / "extrapolation"


class Part(ce.Energy):
    """The energy of some numbers of a code; the others are free."""

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
    """A head that adds its readings of *where* and *what*, so that it generalizes to new pairs of both."""

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


class LeastSquares(Objective):
    """The paper's baseline, on codes: regression from position and size by least squares."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        return Loss((model(waves(batch.labels["y"])) - batch.x).square().mean())


def waves(y: Tensor) -> Tensor:
    """Returns positions and sizes with shape $(B, 3)$ as inputs of networks: numbers, sines and cosines, with shape $(B, 21)$."""
    angles = [y * (math.pi / 2 * wave) for wave in (1, 2, 4)]
    return torch.cat([y, *(f(angle) for angle in angles for f in (torch.sin, torch.cos))], 1)


def scaled(size: Tensor) -> Tensor:
    """Returns sizes in [-1, 1]."""
    return (size - sum(SIZES) / 2) / ((SIZES[1] - SIZES[0]) / 2)


@dataclass(frozen=True)
class Trainings:
    """All trainings at a ratio."""

    ratio: float  # share of the positions with all sizes
    seed: int = 0  # seed of the trainings

    @cached_property
    def scenes(self) -> dict[str, Scenes]:
        pairs = training_pairs(self.ratio)
        return {name: balls(len(pair), SEEDS[name], POSITIONS[pair[:, 0]], STEPS[pair[:, 1]]) for name, pair in pairs.items()}

    @cached_property
    def coder(self) -> WhereAndWhat:
        images = np.concatenate([scenes.images for scenes in self.scenes.values()])
        coder = self._fresh(WhereAndWhat)
        coder.set_statistics(torch.cat([silhouettes(part) for part in _batches(images)]))
        self._fit("autoencoder", coder, Painting(), Pictures(images, {}, "balls"), 300, 64)
        coder.normalize_what(_batches(images))
        return coder

    @cached_property
    def codes(self) -> dict[str, Tensor]:
        coder = self.coder
        with torch.no_grad():
            return {name: torch.cat([coder.encode(part) for part in _batches(scenes.images)]) for name, scenes in self.scenes.items()}

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
        """A position energy that is also trained on the positions of the size energy's pictures."""
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
        """The holistic baseline with *where* and *what* independent given position and size."""
        return self._holistic("holistic-where", slice(0, WHERE), 700, 144) & self._holistic("holistic-what", slice(WHERE, None), 700, 144)

    @cached_property
    def answer(self) -> nn.Module:
        return self._fit("answer", self._fresh(_regression_network), LeastSquares(), self._labelled, 1400)

    @property
    def _labelled(self) -> tuple[Tensor, dict[str, Tensor]]:
        """All codes with their positions and sizes."""
        y = [condition(scenes.labels["position"], scenes.labels["size"]) for scenes in self.scenes.values()]
        return torch.cat(list(self.codes.values())), {"y": torch.cat(y)}

    def _holistic(self, name: str, numbers: slice, steps: int, width: int) -> Any:
        objective = DenoisingScoreMatching(*LEVELS, condition="y")
        return self._fit(name, self._fresh(Holistic, numbers, self.coder, name, width), objective, self._labelled, steps)

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
    """Returns the condition of the baselines, with shape $(B, 3)$."""
    return torch.cat([torch.from_numpy(np.float32(position)), scaled(torch.from_numpy(np.float32(size)))[:, None]], 1)


def _regression_network() -> nn.Module:
    return nn.Sequential(nn.Linear(21, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, WHERE + WHAT))


def _batches(images: np.ndarray) -> Iterator[Tensor]:
    for first in range(0, len(images), 500):
        yield torch.from_numpy(images[first : first + 500]).float() / 255
