r"""Makes the weights of the energies of several objects from nothing but seeds.

    python -m composable_energy_scenes.train_multi_object --out FOLDER [--effort 1.0] [--install]

In order: render pictures of one to four objects, train without labels a coder of patches and a base energy of its codes, then the head
of `Presence`, which is told of one object of each picture, and the detector on pictures of another seed, in which it is told of all.
Each keeps what it has in FOLDER; the same command after a kill goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from composable_energy_image.data import Pictures, Preparation
from composable_energy_image.reconstruction import Reconstruction
from composable_energy_scenes import several
from composable_energy_scenes.detector import Detector, Finding
from composable_energy_scenes.network_trainer import Seen, encoded
from composable_energy_scenes.patches import PatchCoder, PatchEnergy
from composable_energy_scenes.presence import CELLS, PlaceHead, cell_of
from composable_energy_scenes.multi_object import several_objects, told_of
from composable_energy_scenes.run_folder import Workshop, command
from composable_energy_training import AttributeHeads, DenoisingScoreMatching

__all__ = ["SEEDS", "MakingSeveral", "main"]

SEEDS = {"train": 1, "detector": 2}
"""Renders of different seeds never meet: the detector learns from others than the energies, and experiments score with further ones."""

_COUNTS = {"train": 32_000, "detector": 16_000}
_STEPS = {"coder": 1_400, "base": 2_500, "place": 750, "detector": 1_200}
_CODE_NOISE = 0.05


@dataclass(frozen=True)
class MakingSeveral:
    """One run of the command.

    Attributes:
        folder: Where everything is kept.
        effort: Multiplies the steps of every training and, below 1, the number of renders.
        progress: Whether to show bars.
    """

    folder: Path
    effort: float = 1.0
    progress: bool = True

    def make(self) -> None:
        """Makes the weights, or goes on where it stopped."""
        coder = self.coder()
        base = self.base(coder)
        self.place(base)
        self.detector()
        self.shop.report()

    @cached_property
    def shop(self) -> Workshop:
        """The folder in which it is done."""
        return Workshop(self.folder, several_objects(), SEEDS, _COUNTS, self.effort, self.progress)

    def coder(self) -> PatchCoder:
        """Returns the coder of patches, trained to give pictures back from codes with noise; it is told nothing."""
        images = self.shop.rendered("train").images
        with self.shop.fitting.seeded("coder"):
            coder = PatchCoder()
        objective = Reconstruction(coder.numbers, {}, noise=_CODE_NOISE)
        pictures = Pictures(images, {}, "several")
        self.shop.fitting.fit("coder", _Copying(coder), objective, pictures, _STEPS["coder"], 96, 2e-3, ema=0.998, precision="auto")
        _settle(coder, images)
        self.shop.keep(coder, "coder")
        return coder.eval().requires_grad_(False)

    def base(self, coder: PatchCoder) -> PatchEnergy:
        """Returns the energy of any picture, trained by denoising score matching; it is told nothing."""
        with self.shop.fitting.seeded("base"):
            base = PatchEnergy()
        base.coder.load_state_dict(coder.state_dict())
        codes, objective = self.shop.codes(coder, "train"), DenoisingScoreMatching(base.sigma_min, base.sigma_max)
        self.shop.fitting.fit("base", base.net, objective, codes, _STEPS["base"], 128, 2e-3, ema=0.999, precision="auto")
        self.shop.keep(base.net, "base")
        return base.eval().requires_grad_(False)

    def place(self, base: PatchEnergy) -> PlaceHead:
        """Returns the head of `Presence`, which is told the place of one object of each picture and of its mirror image.

        Three passes, for which of several objects is told cannot be known: in twelve the head learns that by heart.
        """
        scenes = self.shop.rendered("train")
        told = torch.from_numpy(told_of(scenes.labels["present"], scenes.labels["position"], SEEDS["train"]))
        cells = cell_of(torch.cat([told, told * torch.tensor([-1.0, 1.0])]))
        codes = torch.cat([self.shop.codes(base.coder, "train"), encoded(base.coder, scenes.images[..., ::-1])])
        with self.shop.fitting.seeded("place"):
            head = PlaceHead(base.sigma_min)
        objective = AttributeHeads({"place": CELLS**2}, base.sigma_min, base.sigma_max)
        self.shop.fitting.fit("place", head, objective, (codes, {"place": cells}), _STEPS["place"], 256, 2e-3, ema=0.998, decay=1e-2)
        self.shop.keep(head, "place")
        return head.eval().requires_grad_(False)

    def detector(self) -> Detector:
        """Returns the detector, which is told the places of all objects."""
        scenes = self.shop.rendered("detector")
        positions = np.where(scenes.labels["present"][..., None], scenes.labels["position"], np.nan)
        data = Seen(Pictures(scenes.images, {}, "several"), {"position": torch.from_numpy(positions).flatten(1)})
        with self.shop.fitting.seeded("detector"):
            detector = Detector()
        noisy = Preparation(dequantize=0.03)
        self.shop.fitting.fit(
            "detector", detector, Finding(), data, _STEPS["detector"], 96, 3e-3, ema=0.998, precision="auto", preparation=noisy
        )
        self.shop.keep(detector, "detector")
        return detector.eval().requires_grad_(False)


class _Copying(nn.Module):
    """A coder as `Reconstruction` trains it."""

    def __init__(self, coder: PatchCoder) -> None:
        super().__init__()
        self.coder = coder

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.coder.encode(images.contiguous(memory_format=torch.channels_last))
        flat = codes.flatten(1)
        return self.coder.decode(codes + noise.view_as(codes)), flat, flat[:, :0]


@torch.no_grad()
def _settle(coder: PatchCoder, images: np.ndarray, count: int = 8_000) -> None:
    """Gives a coder the mean and variance of the codes of many pictures, where training left those of its last batches."""
    parts = np.array_split(images[:count], max(1, min(count, len(images)) // 500))
    raw = torch.cat([coder.encoder(torch.from_numpy(np.array(part)).float() / 127.5 - 1) for part in parts])
    coder.standardize.running_mean.copy_(raw.mean((0, 2, 3)))  # pyright: ignore[reportOptionalMemberAccess]
    coder.standardize.running_var.copy_(raw.var((0, 2, 3)))  # pyright: ignore[reportOptionalMemberAccess]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Those of the command line, or None to read them.
    """
    name = "composable_energy_scenes.train_multi_object"
    command(name, __doc__, lambda folder, effort: MakingSeveral(folder, effort).make(), several.FOLDER, arguments)


if __name__ == "__main__":
    main()
