r"""Trains the energies of pictures of several objects, reproducibly from seeds.

    python -m composable_energy_scenes.train_multi_object --out FOLDER [--effort 1.0] [--install]

The steps: render pictures of one to four objects; train, without labels, a coder of patches and a base energy of its codes; train the head
of `Presence` on the position of one object per picture; train the detector on pictures of another seed with all positions. Results are kept
in FOLDER, and after an interruption the same command resumes.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy_image.data import Pictures, Preparation
from composable_energy_image.network_training import run_command, set_standardization
from composable_energy_image.reconstruction import Reconstruction
from composable_energy_scenes import multi_object
from composable_energy_scenes.judge import CELL, GRID, Detector
from composable_energy_scenes.multi_object import draw_labelled_positions, multi_object_world
from composable_energy_scenes.network_trainer import LabelledPictures, RunFolder, encode_images
from composable_energy_scenes.patches import PatchCoder, PatchEnergy
from composable_energy_scenes.presence import CELLS, PlaceHead, cell_of
from composable_energy_training import AttributeHeads, Batch, DenoisingScoreMatching, Loss, Objective

SEEDS = {"train": 1, "detector": 2}
"""Seeds of the renders. The detector and the energies train on different renders; experiments score on further seeds."""

COUNTS = {"train": 32_000, "detector": 16_000}
"""Numbers of renders."""

_STEPS = {"coder": 1_400, "base": 2_500, "place": 750, "detector": 1_200}
_CODE_NOISE = 0.05
_STANDARDIZED = 8_000  # pictures over which codes are standardized

_Model = TypeVar("_Model", bound=nn.Module)


def train_multi_object(run: RunFolder) -> None:
    """Trains all networks in a run folder with the world of `multi_object_world` and `SEEDS`, or resumes."""
    _train_place_head(run, _train_base(run, _train_coder(run)))
    _train_detector(run)
    run.write_report()


def _train_coder(run: RunFolder) -> PatchCoder:
    """Returns the coder of patches, trained without labels to reconstruct pictures from codes with noise."""
    images = run.render("train").images
    with run.trainer.seeded("coder"):
        coder = PatchCoder()
    objective = Reconstruction(coder.numbers, {}, noise=_CODE_NOISE)
    pictures = Pictures(images, {}, "several")
    run.trainer.fit("coder", _NoisyCoder(coder), objective, pictures, _STEPS["coder"], 96, 2e-3, ema=0.998, precision="auto")
    parts = np.array_split(images[:_STANDARDIZED], max(1, min(_STANDARDIZED, len(images)) // 500))
    with torch.no_grad():
        raw = torch.cat([coder.encoder(torch.from_numpy(np.array(part)).float() / 127.5 - 1) for part in parts])
    set_standardization(coder.standardize, raw)
    return _finish(run, coder, coder, "coder")


def _train_base(run: RunFolder, coder: PatchCoder) -> PatchEnergy:
    """Returns the energy of any picture, trained without labels by denoising score matching."""
    with run.trainer.seeded("base"):
        base = PatchEnergy()
    base.coder.load_state_dict(coder.state_dict())
    codes, objective = run.encode(coder, "train"), DenoisingScoreMatching(base.sigma_min, base.sigma_max)
    run.trainer.fit("base", base.net, objective, codes, _STEPS["base"], 128, 2e-3, ema=0.999, precision="auto")
    return _finish(run, base, base.net, "base")


def _train_place_head(run: RunFolder, base: PatchEnergy) -> None:
    """Trains the head of `Presence` on the position of one object of each picture and of its mirror image. It trains for three epochs: the
    choice of the labelled object is random, and in twelve epochs the head memorizes it."""
    scenes = run.render("train")
    positions = torch.from_numpy(draw_labelled_positions(scenes.labels["present"], scenes.labels["position"], SEEDS["train"]))
    cells = cell_of(torch.cat([positions, positions * torch.tensor([-1.0, 1.0])]))
    codes = torch.cat([run.encode(base.coder, "train"), encode_images(base.coder, scenes.images[..., ::-1])])
    with run.trainer.seeded("place"):
        head = PlaceHead(base.sigma_min)
    objective = AttributeHeads({"place": CELLS**2}, base.sigma_min, base.sigma_max)
    run.trainer.fit("place", head, objective, (codes, {"place": cells}), _STEPS["place"], 256, 2e-3, ema=0.998, weight_decay=1e-2)
    _finish(run, head, head, "place")


def _train_detector(run: RunFolder) -> None:
    """Trains the detector on the positions of all objects."""
    scenes = run.render("detector")
    positions = np.where(scenes.labels["present"][..., None], scenes.labels["position"], np.nan)
    data = LabelledPictures(Pictures(scenes.images, {}, "several"), {"position": torch.from_numpy(positions).flatten(1)})
    with run.trainer.seeded("detector"):
        detector = Detector()
    noisy, steps = Preparation(dequantize=0.03), _STEPS["detector"]
    run.trainer.fit("detector", detector, DetectionLoss(), data, steps, 96, 3e-3, ema=0.998, precision="auto", preparation=noisy)
    _finish(run, detector, detector, "detector")


def _finish(run: RunFolder, model: _Model, network: nn.Module, part: str) -> _Model:
    """Saves the trained network of a model, and returns the model frozen and in eval mode."""
    run.save(network, part)
    return model.eval().requires_grad_(False)


class DetectionLoss(Objective):
    """The detector's objective: cross entropy of cells, plus the position error of all objects in the label `position`, padded with NaN."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        logits, places = model(batch.x)
        position = batch.labels["position"].unflatten(1, (-1, 2))
        row, which = position.isfinite().all(2).nonzero(as_tuple=True)
        truth = position[row, which]
        column, line = ((truth + 1) / CELL).long().clamp(0, GRID - 1).unbind(1)
        cell = line * GRID + column
        occupied = torch.zeros_like(logits)
        occupied[row, cell] = 1.0
        entropy = F.binary_cross_entropy_with_logits(logits.float(), occupied, reduction="sum") / len(logits)
        error = (places.float()[row, cell] - truth).abs().mean()
        return Loss(entropy + 5 * error, {"cells": entropy.detach(), "off": error.detach()})


class _NoisyCoder(nn.Module):
    """The coder with noise on its codes, as `Reconstruction` trains it."""

    def __init__(self, coder: PatchCoder) -> None:
        super().__init__()
        self.coder = coder

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.coder.encode(images.contiguous(memory_format=torch.channels_last))
        flat = codes.flatten(1)
        return self.coder.decode(codes + noise.view_as(codes)), flat, flat[:, :0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with arguments; those of the command line if None."""
    run_command(
        lambda folder, effort: train_multi_object(RunFolder(folder, multi_object_world(), SEEDS, COUNTS, effort)),
        multi_object.FOLDER,
        arguments,
    )


if __name__ == "__main__":
    main()
