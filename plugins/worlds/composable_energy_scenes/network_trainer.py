"""Training of the networks of scenes in a run folder, which resumes after an interruption."""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy.files import replace_file
from composable_energy_image import CodeEnergy, CodeHeads
from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.data import Pictures, Preparation, Scenes, World, render_to
from composable_energy_image.network_training import read_costs, scaled, seeded, set_standardization, train_network
from composable_energy_image.reconstruction import AutoencoderWithLabels, DecoderOnly, Reconstruction
from composable_energy_scenes import weights
from composable_energy_scenes.conditional import ConditionalEnergy
from composable_energy_scenes.judge import Judge
from composable_energy_scenes.patches import PatchCoder
from composable_energy_scenes.renderer import KINDS
from composable_energy_training import AttributeHeads, Batch, DenoisingScoreMatching, Loss, Objective, Prepared, ValueHeads

_CHUNK = 500
_NUMBERS = ("position", "size", "light")


@dataclass(frozen=True)
class NetworkTrainer:
    """Trains networks in folders of one folder, with one seed; `effort` is a factor of all numbers of steps."""

    folder: Path
    seed: int = 0
    effort: float = 1.0
    progress: bool = False

    def train_judge(self, scenes: Scenes, steps: int) -> Judge:
        """Returns a judge trained on pictures of 64 pixels with a little noise, and on their labels."""
        with self.seeded("judge"):
            judge = Judge()
        labels = {name: torch.from_numpy(np.array(values)) for name, values in scenes.labels.items()}
        data = LabelledPictures(Pictures(scenes.images, {}, "scenes"), labels)
        self.fit("judge", judge, _JudgeLoss(), data, steps, 96, 3e-3, ema=0.998, preparation=Preparation(dequantize=0.03))
        return judge.eval()

    def train_autoencoder(self, images: np.ndarray, code: int, steps: int, decoder_steps: int, *, noise: float = 0.05) -> Autoencoder:
        """Returns an autoencoder trained without labels on bytes with shape $(N, C, S, S)$: first all of it, then the decoder alone. A code
        has `code` numbers with unit variance, and in training noise of a standard deviation."""
        pictures = Pictures(images, {}, "scenes")
        with self.seeded("autoencoder"):
            coder = Autoencoder(images.shape[2], images.shape[1], code)
        objective = Reconstruction(code, {}, noise=noise, decorrelation=0.05)
        self.fit("autoencoder", AutoencoderWithLabels(coder, 0), objective, pictures, steps, 96, 2e-3, ema=0.998, precision="auto")
        with torch.no_grad():
            raw = torch.cat([coder.encode_raw(part) for part in in_chunks(images)])
        set_standardization(coder.standardize, raw)
        if decoder_steps:
            objective = Reconstruction(code, {}, noise=noise)
            self.fit("decoder", DecoderOnly(coder), objective, pictures, decoder_steps, 96, 1e-3, ema=0.998, precision="auto")
        return coder.eval().requires_grad_(False)

    def train_base(self, energy: CodeEnergy, codes: Tensor, steps: int, refining: int = 0, name: str = "base") -> None:
        """Trains a base on codes with shape $(N, D)$ by denoising score matching. The gradient noise is large, so the last steps,
        `refining`, use four times the batch and half the learning rate."""
        objective = DenoisingScoreMatching(energy.sigma_min, energy.sigma_max)
        self.fit(name, energy.net, objective, codes, steps, 256, 2e-3, ema=0.999)
        if refining:
            self.fit(f"{name}_refined", energy.net, objective, codes, refining, 1024, 1e-3, ema=0.999)
        energy.eval().requires_grad_(False)

    def train_classifier(
        self, base: CodeEnergy, codes: Tensor, label: Tensor, values: int, name: str, steps: int, width: int = 192
    ) -> CodeHeads:
        """Returns a head that classifies codes, trained at all noise levels."""
        objective = AttributeHeads({name: values}, base.sigma_min, base.sigma_max)
        return self._train_head(base, values, objective, (codes, {name: label}), name, steps, width)

    def train_regressor(self, base: CodeEnergy, codes: Tensor, numbers: Tensor, name: str, steps: int, width: int = 192) -> CodeHeads:
        """Returns a head that predicts means and widths of numbers, trained at all noise levels."""
        dims = numbers[:1].numel()
        objective = ValueHeads(name, dims, base.sigma_min, base.sigma_max)
        return self._train_head(base, 2 * dims, objective, (codes, {name: numbers}), name, steps, width)

    def _train_head(self, base: CodeEnergy, outputs: int, objective: Objective, data: Any, name: str, steps: int, width: int) -> CodeHeads:
        with self.seeded(name):
            head = CodeHeads(outputs, code=base.autoencoder.code, width=width, sigma_min=base.sigma_min)
        self.fit(name, head, objective, data, steps, 256, 2e-3, ema=0.998, weight_decay=1e-2)
        return head.eval().requires_grad_(False)

    def train_conditional(
        self, energy: ConditionalEnergy, codes: Tensor, y: Tensor, name: str, sigmas: tuple[float, float], steps: int
    ) -> None:
        """Trains a conditional energy on codes with conditions, by denoising score matching."""
        data, objective = (codes, {"y": energy.features(y).to(codes)}), DenoisingScoreMatching(*sigmas, condition="y")
        self.fit(name, energy.net, objective, data, steps, 256, 2e-3, ema=0.999)
        energy.eval().requires_grad_(False)

    def costs(self) -> dict[str, dict[str, float]]:
        """Returns the steps, processor seconds and loss of each training."""
        found = {folder.name: read_costs(folder) for folder in sorted(self.folder.iterdir()) if folder.is_dir()}
        return {name: costs for name, costs in found.items() if costs}

    def seeded(self, part: str) -> AbstractContextManager[None]:
        """Seeds initial weights by the seed and the name of a part, and restores the random state on exit."""
        return seeded(self.seed, part)

    def fit(
        self,
        name: str,
        model: nn.Module,
        objective: Objective,
        data: Any,
        steps: int,
        batch: int,
        rate: float,
        *,
        preparation: Preparation | None = None,
        **options: Any,
    ) -> None:
        """Trains a model in the folder of a name, or resumes its training, with further options of `Optimizer`."""
        sizes = {"steps": scaled(steps, self.effort), "batch_size": batch, "rate": rate, "seed": self.seed}
        data, store = Prepared(data, preparation), {"keep": 1}
        train_network(self.folder / name, model, objective, data, store=store, progress=self.progress, **sizes, **options)


@torch.no_grad()
def encode_images(coder: Autoencoder | PatchCoder, images: np.ndarray) -> Tensor:
    """Returns the codes of pictures, given as bytes with shape $(N, C, S, S)$; the shape is $(N, D)$, or that of patches."""
    return torch.cat([coder.encode(part) for part in in_chunks(images)])


def in_chunks(images: np.ndarray) -> Iterator[Tensor]:
    """Yields parts of pictures that are given as bytes, as numbers in [0, 1]."""
    for first in range(0, len(images), _CHUNK):
        yield torch.from_numpy(np.array(images[first : first + _CHUNK])).float().div_(255)


class LabelledPictures:
    """Pictures with labels of any type, with shape $(N, *)$; the labels of `Pictures` are classes."""

    def __init__(self, pictures: Pictures, labels: dict[str, Tensor]) -> None:
        self.images, self._count = pictures.images, len(pictures)
        self.labels = {name: SimpleNamespace(values=values) for name, values in labels.items()}

    def __len__(self) -> int:
        return self._count


class _JudgeLoss(Objective):
    """The judge's objective: squared errors of numbers in units of their standard deviation, and cross entropies of classes."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        output = model(batch.x).float()
        truth = torch.cat([batch.labels[name].reshape(len(output), -1) for name in _NUMBERS], 1)
        error = ((output[:, :5] - truth) / truth.new_tensor([0.58, 0.58, 0.115, 0.7, 0.7])).square().mean()
        shape, color = output[:, 5 : 5 + len(KINDS)], output[:, 5 + len(KINDS) :]
        return Loss(error + 0.3 * (F.cross_entropy(shape, batch.labels["shape"]) + F.cross_entropy(color, batch.labels["color"])))


@dataclass(frozen=True)
class RunFolder:
    """The folder of a training run. Every result is kept, so an interrupted run resumes.

    `seeds` and `counts` are those of the renders, by their use. `effort` is a factor of the training steps and, below 1, of the renders.
    """

    folder: Path
    world: World
    seeds: Mapping[str, int]
    counts: Mapping[str, int]
    effort: float = 1.0
    progress: bool = True

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    @cached_property
    def trainer(self) -> NetworkTrainer:
        return NetworkTrainer(self.folder / "run", effort=self.effort, progress=self.progress)

    def render(self, use: str) -> Scenes:
        """Returns the renders for one use; the first call renders them."""
        count = max(8, round(self.counts[use] * min(1.0, self.effort)))
        return render_to(self.folder / use, self.world, count, self.seeds[use], progress=self.progress)

    def encode(self, coder: Autoencoder | PatchCoder, use: str) -> Tensor:
        """Returns the codes of the renders for one use; the first call encodes them."""
        if not (target := self.folder / f"codes-{use}.npy").exists():
            file = BytesIO()
            np.save(file, encode_images(coder, self.render(use).images).numpy())
            replace_file(target, file.getvalue())
        return torch.from_numpy(np.load(target))

    def save(self, network: nn.Module, part: str) -> None:
        weights.write(network, part, self.weights)

    def write_report(self) -> None:
        """Writes `report.json` with the costs of each training."""
        replace_file(self.folder / "report.json", f"{json.dumps({'trainings': self.trainer.costs()}, indent=1)}\n".encode())
