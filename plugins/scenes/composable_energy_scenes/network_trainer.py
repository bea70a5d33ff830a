"""How the networks of scenes are trained: each by one call, which goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy_image import CodeEnergy, CodeHeads
from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.data import Pictures, Preparation
from composable_energy_image.cost_log import CostLog, read_costs
from composable_energy_image.reconstruction import Reconstruction, DecoderOnly, AutoencoderWithLabels
from composable_energy_scenes.conditional import ConditionalEnergy
from composable_energy_scenes.judge import Judge
from composable_energy_scenes.patches import PatchCoder
from composable_energy_scenes.renderer import KINDS
from composable_energy_training import (
    AttributeHeads,
    Batch,
    DenoisingScoreMatching,
    Loss,
    Objective,
    Optimizer,
    Trainer,
    ValueHeads,
)

__all__ = ["Fitting", "Seen", "encoded"]

_CHUNK = 500
_NUMBERS = ("position", "size", "light")


@dataclass(frozen=True)
class Fitting:
    """Trainings that share a folder and a seed.

    Attributes:
        folder: Where each has a folder of its own.
        seed: Of all of them.
        effort: Multiplies all numbers of steps.
        progress: Whether to show bars.
    """

    folder: Path
    seed: int = 0
    effort: float = 1.0
    progress: bool = False

    def judge(self, images: np.ndarray, labels: dict[str, Tensor], steps: int = 4_000) -> Judge:
        """Returns a judge trained on pictures that are shifted by up to a pixel and a little noisy.

        Args:
            images: Bytes with shape $(N, 3, 64, 64)$.
            labels: Those of the world.
            steps: How many.
        """
        with self.seeded("judge"):
            judge = Judge()
        data = Pictures(images, {}, "scenes"), labels
        self.fit("judge", judge, _Judging(), Seen(*data), steps, 96, 3e-3, ema=0.998, preparation=Preparation(dequantize=0.03))
        return judge.eval()

    def autoencoder(self, images: np.ndarray, code: int, steps: int, painting: int, *, noise: float = 0.05) -> Autoencoder:
        """Returns an autoencoder trained without labels: all of it, then its decoder alone.

        Args:
            images: Bytes with shape $(N, C, S, S)$.
            code: Numbers in a code.
            steps: With the encoder.
            painting: Without it.
            noise: On the codes that are decoded, which have unit variance.
        """
        pictures = Pictures(images, {}, "scenes")
        with self.seeded("autoencoder"):
            coder = Autoencoder(images.shape[2], images.shape[1], code)
        whole = Reconstruction(code, {}, noise=noise, decorrelation=0.05)
        self.fit("autoencoder", AutoencoderWithLabels(coder, 0), whole, pictures, steps, 96, 2e-3, ema=0.998, precision="auto")
        with torch.no_grad():
            raw = torch.cat([coder.encode_raw(part) for part in _parts(images)])
            coder.standardize.running_mean.copy_(raw.mean(0))  # pyright: ignore[reportOptionalMemberAccess]
            coder.standardize.running_var.copy_(raw.var(0))  # pyright: ignore[reportOptionalMemberAccess]
        if painting:
            decoder = Reconstruction(code, {}, noise=noise)
            self.fit("decoder", DecoderOnly(coder), decoder, pictures, painting, 96, 1e-3, ema=0.998, precision="auto")
        return coder.eval().requires_grad_(False)

    def base(self, energy: CodeEnergy, codes: Tensor, steps: int, refining: int = 0, name: str = "base") -> None:
        """Trains a base on codes by denoising score matching, whose noise is large; so the last steps have four times the batch.

        Args:
            energy: What is trained.
            codes: With shape $(N, D)$.
            steps: With batches of 256.
            refining: With batches of 1,024 and half of the rate.
            name: Of its folder.
        """
        objective = DenoisingScoreMatching(energy.sigma_min, energy.sigma_max)
        self.fit(name, energy.net, objective, codes, steps, 256, 2e-3, ema=0.999)
        if refining:
            self.fit(f"{name}_refined", energy.net, objective, codes, refining, 1024, 1e-3, ema=0.999)
        energy.eval().requires_grad_(False)

    def classes(self, base: CodeEnergy, codes: Tensor, label: Tensor, values: int, name: str, steps: int, width: int = 192) -> CodeHeads:
        """Returns a head that names the class of codes, trained at all noise levels."""
        head = self._head(base, values, name, width)
        objective = AttributeHeads({name: values}, base.sigma_min, base.sigma_max)
        self.fit(name, head, objective, (codes, {name: label}), steps, 256, 2e-3, ema=0.998, decay=1e-2)
        return head.eval().requires_grad_(False)

    def values(self, base: CodeEnergy, codes: Tensor, numbers: Tensor, name: str, steps: int, width: int = 192) -> CodeHeads:
        """Returns a head that predicts numbers of codes and their widths, trained at all noise levels."""
        dims = numbers[:1].numel()
        head = self._head(base, 2 * dims, name, width)
        objective = ValueHeads(name, dims, base.sigma_min, base.sigma_max)
        self.fit(name, head, objective, (codes, {name: numbers}), steps, 256, 2e-3, ema=0.998, decay=1e-2)
        return head.eval().requires_grad_(False)

    def conditional(self, energy: ConditionalEnergy, codes: Tensor, y: Tensor, name: str, sigmas: tuple[float, float], steps: int) -> None:
        """Trains a conditional energy on codes and what is told of them, by denoising score matching."""
        self.fit(name, energy.net, _Told(energy, sigmas), (codes, {"y": y}), steps, 256, 2e-3, ema=0.999)
        energy.eval().requires_grad_(False)

    def told(self) -> dict[str, dict[str, float]]:
        """Returns the steps, processor seconds and loss of each training."""
        found = {folder.name: read_costs(folder) for folder in sorted(self.folder.iterdir()) if folder.is_dir()}
        return {name: told for name, told in found.items() if told}

    @contextmanager
    def seeded(self, what: str) -> Iterator[None]:
        """A context in which initial weights depend on the seed and a name alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(blake2b(f"{self.seed} {what}".encode(), digest_size=8).digest(), "little"))
            yield

    def _head(self, base: CodeEnergy, outputs: int, name: str, width: int) -> CodeHeads:
        with self.seeded(name):
            return CodeHeads(outputs, code=base.autoencoder.code, width=width, sigma_min=base.sigma_min)

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
        ema: float,
        decay: float = 1e-4,
        precision: Any = "float32",
        preparation: Any = None,
    ) -> None:
        """Trains a model, or goes on where that was stopped.

        Args:
            name: Of its folder.
            model: What is trained.
            objective: What is minimized.
            data: As `Trainer` takes it.
            steps: How many, before `effort`.
            batch: Rows of a step.
            rate: The highest learning rate.
            ema: The share of the averaged weights that a step keeps.
            decay: Of weights.
            precision: What networks compute in.
            preparation: What is done to pictures before the model sees them.
        """
        steps = max(5, round(steps * self.effort))
        Trainer(
            model,
            objective,
            data,
            steps=steps,
            batch_size=batch,
            out=self.folder / name,
            seed=self.seed,
            optimizer=Optimizer(rate=rate, betas=(0.9, 0.999), weight_decay=decay, warm_up=min(200, steps // 10), decay=0.7, clip=1.0),
            ema=ema,
            precision=precision,
            checkpoint_every=500,
            keep=1,
            preparation=preparation,
            monitor=None,
            callbacks=[CostLog()],
            progress=self.progress,
        ).fit()


@torch.no_grad()
def encoded(coder: Autoencoder | PatchCoder, images: np.ndarray) -> Tensor:
    """Returns the codes, with shape $(N, D)$ or of patches, of bytes with shape $(N, C, S, S)$."""
    return torch.cat([coder.encode(part) for part in _parts(images)])


def _parts(images: np.ndarray) -> Iterator[Tensor]:
    for first in range(0, len(images), _CHUNK):
        yield torch.from_numpy(np.array(images[first : first + _CHUNK])).float().div_(255)


class Seen:
    """Pictures with labels that are classes and numbers; `Pictures` themselves take classes alone.

    Args:
        pictures: The pictures.
        labels: Values with shape $(N, *)$ by name.
    """

    def __init__(self, pictures: Pictures, labels: dict[str, Tensor]) -> None:
        self.images, self._count = pictures.images, len(pictures)
        self.labels = {name: _Values(values) for name, values in labels.items()}

    def __len__(self) -> int:
        return self._count


@dataclass(frozen=True)
class _Values:
    values: Tensor


class _Judging(Objective):
    """The judge's: squares of errors of numbers in units of their spread, and cross entropies of classes."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        told = model(batch.x).float()
        truth = torch.cat([batch.labels[name].reshape(len(told), -1) for name in _NUMBERS], 1)
        spread = truth.new_tensor([0.58, 0.58, 0.115, 0.7, 0.7])
        off = ((told[:, :5] - truth) / spread).square().mean()
        shape, color = told[:, 5 : 5 + len(KINDS)], told[:, 5 + len(KINDS) :]
        return Loss(off + 0.3 * (F.cross_entropy(shape, batch.labels["shape"]) + F.cross_entropy(color, batch.labels["color"])))


class _Told(Objective):
    """Denoising score matching of an energy through its network, which is what is trained."""

    def __init__(self, energy: ConditionalEnergy, sigmas: tuple[float, float]) -> None:
        self._energy, self._scores = energy, DenoisingScoreMatching(*sigmas, condition="y")

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        return self._scores.loss(self._energy, batch)
