r"""Sizes at positions where only one size was in the training set (section 4.4 and figure 10 of the paper).

    python -m benchmarks.papers.compositional_2020.extrapolation [--write]

Red balls at 20 x 20 positions in 20 sizes. A share of the positions, column by column from the near left corner, has all sizes; the others
have only the largest. The position energy is trained on all positions with the largest size, the size energy on the share's positions with
all sizes; autoencoder and base see the same pictures without labels. The test pairs are the other sizes at the other positions, or all
pairs where the share is 1. The holistic baseline is trained with position and size of every picture of both sets.

All use codes that separate where and what (`WhereAndWhat`). The base takes the two as independent, and the position energy reads only
*where*; this is why they generalize to new pairs. The first call trains, in 8 CPU-minutes, and keeps the models in `.cache/`.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.papers.compositional_2020.claims import Evaluator, Options, evaluate, outlines, run_experiment
from benchmarks.papers.experiment import COMPOSITIONAL
from composable_energy_image import CodeHeads
from composable_energy_image.code_energy import CodeNetwork
from composable_energy_image.data import Pictures, Scenes
from composable_energy_image.network_training import set_standardization, train_network
from composable_energy_image.reconstruction import picture_loss
from composable_energy_scenes import COLORS, KINDS, SIZES, OneObject
from composable_energy_scenes.network_trainer import NetworkTrainer, in_chunks
from composable_energy_training import Batch, DenoisingScoreMatching, Loss, Objective, ValueHeads

WHERE, WHAT = 2, 8
_SIZE, _WINDOW = 64, 40  # pixels
_ABOVE = 10  # pixels from the foot up to the middle of the window
_FOOT = 0.9  # the share of the silhouette above the foot


class WhereAndWhat(nn.Module):
    """Pictures with shape $(B, 3, 64, 64)$ to codes of unit variance, *where* first, and back."""

    middle: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(WHERE))
        self.register_buffer("spread", torch.ones(WHERE))
        strided = ((3, 16), (16, 32), (32, 48))
        down = [layer for a, b in strided for layer in (nn.Conv2d(a, b, 4, 2, 1), nn.SiLU())]
        self.read = nn.Sequential(*down, nn.Flatten(), nn.Linear(48 * 25, WHAT), nn.BatchNorm1d(WHAT, affine=False, momentum=0.02))
        self.unfold = nn.Sequential(nn.Linear(WHAT, 128), nn.SiLU(), nn.Linear(128, 64 * 25), nn.SiLU(), nn.Unflatten(1, (64, 5, 5)))
        widths = ((64, 48), (48, 32))
        up = [layer for a, b in widths for layer in (nn.ConvTranspose2d(a, b, 4, 2, 1), nn.SiLU())]
        self.decode_window = nn.Sequential(*up, nn.Conv2d(32, 16, 3, 1, 1), nn.PixelShuffle(2))
        self.floor = nn.Sequential(nn.Linear(WHAT, 32), nn.SiLU(), nn.Linear(32, 3))

    def set_statistics(self, where: Tensor) -> None:
        """Sets the mean and spread of *where*, with shape $(N, 2)$, over the training pictures."""
        self.middle.copy_(where.mean(0))
        self.spread.copy_(where.std(0))

    @torch.no_grad()
    def normalize_what(self, batches: Iterable[Tensor]) -> None:
        """Gives *what* unit variance over all training pictures; during training, running statistics lag behind the weights."""
        *layers, norm = self.read
        set_standardization(norm, torch.cat([nn.Sequential(*layers)(_cut(images, silhouettes(images)) * 2 - 1) for images in batches]))

    def encode(self, images: Tensor) -> Tensor:
        """Returns codes with shape $(B, 10)$ of pictures in [0, 1]."""
        where = silhouettes(images)
        return torch.cat([(where - self.middle) / self.spread, self.read(_cut(images, where) * 2 - 1)], 1)

    def paint(self, codes: Tensor) -> Tensor:
        """Returns pictures without clipping to [0, 1], for training."""
        where, what = codes[:, :WHERE] * self.spread + self.middle, codes[:, WHERE:]
        window = self.decode_window(self.unfold(what))
        colors, cover = _put(torch.cat([window[:, :3], window[:, 3:].sigmoid()], 1), where).split([3, 1], 1)
        return torch.lerp(self.floor(what)[:, :, None, None], colors, cover) / 2 + 0.5

    def forward(self, codes: Tensor) -> Tensor:
        """Returns the pictures, in [0, 1], of codes with shape $(B, 10)$."""
        return self.paint(codes).clamp(0, 1)


class Painting(Objective):
    """Reconstruction from codes with noise on *what*, so that similar codes give similar pictures; *what* is kept uncorrelated."""

    def __init__(self, noise: float = 0.05, decorrelation: float = 0.05) -> None:
        self.noise, self.decorrelation = noise, decorrelation

    def loss(self, model: Any, batch: Batch) -> Loss:
        where, what = model.encode(batch.x).split([WHERE, WHAT], 1)
        painted = model.paint(torch.cat([where, what + self.noise * batch.noise.normal(what)], 1))
        correlation = what.T @ what / len(what) - torch.eye(WHAT)
        return Loss(picture_loss(painted.contiguous(), batch.x) + self.decorrelation * correlation.square().mean())


@torch.no_grad()
def silhouettes(images: Tensor) -> Tensor:
    """Returns the column of the middle and the row of the foot of silhouettes, in [-1, 1], with shape $(B, 2)$.

    The foot is the row above which nine tenths of the silhouette lie: nearly the point where a ball of any size touches the floor.
    """
    mask = outlines(images)[:, 0]
    size = mask.shape[-1]
    area = mask.sum((1, 2)).clamp_min(1e-3)
    column = (mask.sum(1) * (torch.arange(size) + 0.5)).sum(1) / area
    above = F.pad(mask.sum(2).cumsum(1) / area[:, None], (1, 0))  # the share above the upper edge of each row
    last = (above[:, 1:] < _FOOT).sum(1, keepdim=True).clamp(max=size - 1)
    before, after = above.gather(1, last)[:, 0], above.gather(1, last + 1)[:, 0]
    row = last[:, 0] + (_FOOT - before) / (after - before).clamp_min(1e-6)
    return torch.stack([column, row], 1) / size * 2 - 1


def _cut(images: Tensor, where: Tensor) -> Tensor:
    """Returns the windows above the feet, with shape $(B, 3, 40, 40)$."""
    places = F.affine_grid(_frames(where, _WINDOW / _SIZE, 1.0), [len(images), 3, _WINDOW, _WINDOW], align_corners=False)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)


def _put(windows: Tensor, where: Tensor) -> Tensor:
    """Returns pictures, with shape $(B, 4, 64, 64)$, of windows at their places; zero elsewhere."""
    places = F.affine_grid(_frames(where, _SIZE / _WINDOW, -_SIZE / _WINDOW), [len(windows), 4, _SIZE, _SIZE], align_corners=False)
    return F.grid_sample(windows, places, align_corners=False)


def _frames(where: Tensor, scale: float, shift: float) -> Tensor:
    middle = where - where.new_tensor([0.0, 2 * _ABOVE / _SIZE])
    return torch.cat([torch.eye(2).expand(len(where), 2, 2) * scale, (middle * shift)[:, :, None]], 2)


RATIOS = (0.01, 0.1, 1.0)
SIDE = 20  # positions on a side, and sizes
POSITIONS = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij"), -1).reshape(-1, 2)
STEPS = np.linspace(*SIZES, SIDE)
SEEDS = {"position": 31, "size": 32, "evaluator": 33}  # of lamps and floors
PICTURES = {"position": 4_000, "size": 8_000, "evaluator": 10_000}
LEVELS = (0.02, 4.0)  # of noise
CACHE = COMPOSITIONAL.cache / "extrapolation"
SAMPLER = {"levels": 40, "sigma_max": 4.0, "sigma_min": 0.02, "corrector_steps": 3, "delta": 0.1, "max_gradient": 3.0}
WEIGHT = 4.0


def positions_with_all_sizes(ratio: float) -> np.ndarray:
    """Returns the positions that show all sizes: the first int(400 ratio) + 1 of them, as in the released code."""
    return np.arange(min(int(len(POSITIONS) * ratio) + 1, len(POSITIONS)))


def test_pairs(ratio: float) -> np.ndarray:
    """Returns the test pairs of a position and a size, with shape $(N, 2)$: those that no set has, or all pairs if there are none."""
    pairs = np.stack(np.meshgrid(np.arange(len(POSITIONS)), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2)
    new = (pairs[:, 0] > positions_with_all_sizes(ratio)[-1]) & (pairs[:, 1] < SIDE - 1)
    return pairs[new] if new.any() else pairs


def balls(n: int, seed: int, position: np.ndarray, size: np.ndarray) -> Scenes:
    """Returns pictures of red balls under random lamps on random floors."""
    world = OneObject()
    labels = {"position": position, "size": size, "shape": np.full(n, KINDS.index("sphere")), "color": np.full(n, COLORS.index("red"))}
    return world.render(world.labels(n, seed) | labels)


def training_pairs(ratio: float) -> dict[str, np.ndarray]:
    """Returns the training pairs of a position and a size of each concept, with shape $(N, 2)$, with repetitions."""
    places, pair = positions_with_all_sizes(ratio), np.arange(PICTURES["size"])
    large = np.arange(PICTURES["position"]) % len(POSITIONS)
    return {
        "position": np.stack([large, np.full_like(large, SIDE - 1)], 1),
        "size": np.stack([places[pair // SIDE % len(places)], pair % SIDE], 1),
    }


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


class Holistic(ce.Energy):
    """The baseline: one energy of codes given position and size."""

    def __init__(self, decoder: WhereAndWhat) -> None:
        super().__init__()
        self.decoder, self.name, self.event_shape = decoder, "holistic", (WHERE + WHAT,)
        self.net = CodeNetwork(WHERE + WHAT, width=232, blocks=4, conditions=21)

    def forward(self, x: Tensor, y: Tensor, sigma: Tensor | float = LEVELS[0]) -> Tensor:
        return self.net(x, sigma=sigma, y=waves(y))


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
        coder.set_statistics(torch.cat([silhouettes(part) for part in in_chunks(images)]))
        self._fit("autoencoder", coder, Painting(), Pictures(images, {}, "balls"), 300, 64)
        coder.normalize_what(in_chunks(images))
        return coder

    @cached_property
    def codes(self) -> dict[str, Tensor]:
        coder = self.coder
        with torch.no_grad():
            return {name: torch.cat([coder.encode(part) for part in in_chunks(scenes.images)]) for name, scenes in self.scenes.items()}

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
    def size(self) -> ce.GaussianHead:
        data = self.codes["size"], {"size": scaled(torch.from_numpy(self.scenes["size"].labels["size"]))}
        reader = self._fit("size", self._fresh(Reader, slice(None), 2), ValueHeads("size", 1, *LEVELS), data, 600, decay=1e-2)
        return ce.GaussianHead(reader, self.base, dims=1, name="size")

    @cached_property
    def holistic(self) -> Any:
        y = [condition(scenes.labels["position"], scenes.labels["size"]) for scenes in self.scenes.values()]
        data = torch.cat(list(self.codes.values())), {"y": torch.cat(y)}
        return self._fit("holistic", self._fresh(Holistic, self.coder), DenoisingScoreMatching(*LEVELS, condition="y"), data, 1400)

    def _fresh(self, make: Any, *options: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return make(*options)

    def _fit(self, name: str, model: Any, objective: Objective, data: Any, steps: int, batch: int = 256, decay: float = 1e-4) -> Any:
        folder, store = CACHE / f"{self.ratio}-{self.seed}" / name, {"keep": 1}
        options = {"seed": self.seed, "rate": 2e-3, "weight_decay": decay, "warm_up": 100, "ema": 0.995}
        train_network(folder, model, objective, data, steps=steps, batch_size=batch, store=store, **options)
        return model.eval().requires_grad_(False)


def condition(position: np.ndarray, size: np.ndarray) -> Tensor:
    """Returns the condition of the baselines, with shape $(B, 3)$."""
    return torch.cat([torch.from_numpy(np.float32(position)), scaled(torch.from_numpy(np.float32(size)))[:, None]], 1)


def rows(trainings: Trainings, options: Options, evaluator: Evaluator) -> Iterator[dict[str, Any]]:
    """Yields the rows of a ratio."""
    pairs = test_pairs(trainings.ratio)
    pairs = pairs[np.random.default_rng([options.seed, 2020]).permutation(len(pairs))[: options.samples]]
    place, size = POSITIONS[pairs[:, 0]], STEPS[pairs[:, 1]]
    wanted, n = condition(place, size), len(pairs)
    position, size_energy = wanted[:, :2], trainings.size(wanted[:, 2:])

    def sampled(energy: ce.Energy) -> Tensor:
        return energy.sample(n, sampler="annealed", seed=options.seed, **SAMPLER)

    pictures = {
        "position & size": sampled((trainings.position(position) & size_energy).sharpened(WEIGHT)),
        "holistic": sampled(trainings.holistic.given(y=wanted)),
        "renders": torch.from_numpy(balls(n, options.seed, place, size).images).float() / 255,
    }
    for name, images in pictures.items():
        found = evaluate(images, evaluator)
        off = float((found.position - torch.from_numpy(place)).abs().mean())
        wrong = float((found.size - torch.from_numpy(size)).abs().mean())
        yield {"ratio": trainings.ratio, "": name, "sum": off + wrong}


def ball_evaluator() -> Evaluator:
    """Returns the evaluator of balls; it is trained on random positions and sizes."""
    n, random = PICTURES["evaluator"], np.random.default_rng(SEEDS["evaluator"])
    scenes = balls(n, SEEDS["evaluator"], random.uniform(-1, 1, (n, 2)), random.uniform(*SIZES, n))
    return NetworkTrainer(CACHE, SEEDS["evaluator"]).train_judge(scenes, 800)


def run(options: Options) -> dict[str, Any]:
    evaluator = ball_evaluator()
    return {"rows": [row for ratio in RATIOS for row in rows(Trainings(ratio), options, evaluator)]}


if __name__ == "__main__":
    run_experiment("extrapolation", __doc__, run, samples=500)
