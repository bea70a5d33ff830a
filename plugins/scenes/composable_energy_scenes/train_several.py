r"""Makes the weights of the energies of several objects from nothing but seeds.

    python -m composable_energy_scenes.train_several --out FOLDER [--effort 1.0] [--install]

In order: render pictures of one to four objects, train without labels a coder of patches and a base energy of its codes, then the head
of `Presence`, which is told of one object of each picture, and the detector on pictures of another seed, in which it is told of all.
Each keeps what it has in FOLDER; the same command after a kill goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from composable_energy_image.reconstruction import Reconstruction
from torch import Tensor, nn

from composable_energy.data import Pictures, Preparation, Scenes, render_to
from composable_energy.training import AttributeHeads, DenoisingScoreMatching

from . import several, weights
from .detector import Detector, Finding
from .fitting import Fitting, Seen, encoded
from .patches import PatchCoder, PatchEnergy
from .presence import CELLS, PlaceHead, cell_of
from .several import several_objects, told_of

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
        (self.folder / "report.json").write_text(json.dumps({"trainings": self._fitting.told()}, indent=1) + "\n")

    @property
    def trained(self) -> Path:
        """Where finished weights lie."""
        return self.folder / "weights"

    def rendered(self, who: str) -> Scenes:
        """Returns pictures of one of `SEEDS`, rendered at the first call."""
        count = max(8, round(_COUNTS[who] * min(1.0, self.effort)))
        return render_to(self.folder / who, several_objects(), count, SEEDS[who], progress=self.progress)

    def coder(self) -> PatchCoder:
        """Returns the coder of patches, trained to give pictures back from codes with noise; it is told nothing."""
        images = self.rendered("train").images
        with self._fitting.seeded("coder"):
            coder = PatchCoder()
        objective = Reconstruction(coder.numbers, {}, noise=_CODE_NOISE)
        pictures = Pictures(images, {}, "several")
        self._fitting.fit("coder", _Copying(coder), objective, pictures, _STEPS["coder"], 96, 2e-3, ema=0.998, precision="bfloat16")
        _settle(coder, images)
        weights.write(coder, "coder", self.trained)
        return coder.eval().requires_grad_(False)

    def base(self, coder: PatchCoder) -> PatchEnergy:
        """Returns the energy of any picture, trained by denoising score matching; it is told nothing."""
        with self._fitting.seeded("base"):
            base = PatchEnergy()
        base.coder.load_state_dict(coder.state_dict())
        objective = DenoisingScoreMatching(base.sigma_min, base.sigma_max)
        self._fitting.fit("base", base.net, objective, self.codes(coder), _STEPS["base"], 128, 2e-3, ema=0.999, precision="bfloat16")
        weights.write(base.net, "base", self.trained)
        return base.eval().requires_grad_(False)

    def place(self, base: PatchEnergy) -> PlaceHead:
        """Returns the head of `Presence`, which is told the place of one object of each picture and of its mirror image.

        Three passes, for which of several objects is told cannot be known: in twelve the head learns that by heart.
        """
        scenes = self.rendered("train")
        told = torch.from_numpy(told_of(scenes.labels["present"], scenes.labels["position"], SEEDS["train"]))
        cells = cell_of(torch.cat([told, told * torch.tensor([-1.0, 1.0])]))
        codes = torch.cat([self.codes(base.coder), encoded(base.coder, scenes.images[..., ::-1])])
        with self._fitting.seeded("place"):
            head = PlaceHead(base.sigma_min)
        objective = AttributeHeads({"place": CELLS**2}, base.sigma_min, base.sigma_max)
        self._fitting.fit("place", head, objective, (codes, {"place": cells}), _STEPS["place"], 256, 2e-3, ema=0.998, decay=1e-2)
        weights.write(head, "place", self.trained)
        return head.eval().requires_grad_(False)

    def detector(self) -> Detector:
        """Returns the detector, which is told the places of all objects."""
        scenes = self.rendered("detector")
        positions = np.where(scenes.labels["present"][..., None], scenes.labels["position"], np.nan)
        data = Seen(Pictures(scenes.images, {}, "several"), {"position": torch.from_numpy(positions).flatten(1)})
        with self._fitting.seeded("detector"):
            detector = Detector()
        noisy = Preparation(dequantize=0.03)
        self._fitting.fit(
            "detector", detector, Finding(), data, _STEPS["detector"], 96, 3e-3, ema=0.998, precision="bfloat16", preparation=noisy
        )
        weights.write(detector, "detector", self.trained)
        return detector.eval().requires_grad_(False)

    def codes(self, coder: PatchCoder) -> Tensor:
        """Returns the codes of the pictures to train on, made at the first call."""
        target = self.folder / "codes.npy"
        if not target.exists():
            half = target.with_suffix(".half.npy")
            np.save(half, encoded(coder, self.rendered("train").images).numpy())
            half.replace(target)
        return torch.from_numpy(np.load(target))

    @cached_property
    def _fitting(self) -> Fitting:
        return Fitting(self.folder / "run", effort=self.effort, progress=self.progress)


class _Copying(nn.Module):
    """A coder as `Reconstruction` trains it."""

    def __init__(self, coder: PatchCoder) -> None:
        super().__init__()
        self.coder = coder

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.coder.encode(images.contiguous(memory_format=torch.channels_last))
        flat = codes.flatten(1)
        return self.coder.paint(codes + noise.view_as(codes)), flat, flat[:, :0]


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
    parser = argparse.ArgumentParser(
        prog="python -m composable_energy_scenes.train_several", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything is kept; 2 GB")
    parser.add_argument("--effort", type=float, default=1.0, help="multiplies the steps of every training; 1 if not given")
    parser.add_argument("--install", action="store_true", help="copy the weights into the package")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    making = MakingSeveral(options.out, options.effort)
    making.make()
    if options.install:
        several.FOLDER.mkdir(parents=True, exist_ok=True)
        for path in [*making.trained.glob("*.safetensors"), options.out / "report.json"]:
            shutil.copy(path, several.FOLDER)


if __name__ == "__main__":
    main()
