r"""Makes the weights of the concepts of `one-object` from nothing but seeds.

    python -m composable_energy_scenes.train --out FOLDER [--effort 1.0] [--install]

In order: render, train the judge, then without labels an autoencoder of pictures and a base energy of its codes, and then each concept on
pictures of its own, in which all else is random. Each keeps what it has in FOLDER; the same command after a kill goes on from there. The
weights lie in `FOLDER/weights`, what each training cost in `FOLDER/report.json`; `--install` copies both into the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from composable_energy_image import CodeEnergy
from composable_energy_image.autoencoder import Autoencoder
from torch import Tensor

from composable_energy.data import Scenes, render_to

from . import weights
from .concepts import CODE, HEADS_WIDTH, SIGMAS
from .conditional import ConditionalEnergy
from .fitting import Fitting, encoded
from .judge import judged
from .one_object import COLORS, OneObject
from .rendering import KINDS

__all__ = ["SEEDS", "Making", "main"]

SEEDS = {"train": 1, "judge": 2, "test": 3, "light": 4}
"""Renders of different seeds never meet: the judge learns from others than the energies, and both are scored on a third set."""

_COUNTS = {"train": 96_000, "judge": 16_000, "test": 4_000, "light": 24_000}
_STEPS = {"judge": 2_500, "autoencoder": 6_000, "decoder": 16_000, "base": 30_000, "refining": 10_000, "head": 5_000, "conditional": 8_000}
_OWN = 24_000  # pictures of each concept
_PLACES = {"position": 0, "color": 1, "shape": 2, "size": 3}


@dataclass(frozen=True)
class Making:
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
        self._judge()
        coder = self._autoencoder()
        base = self._base(coder)
        self._heads(base)
        self._conditionals(base)
        report = {"trainings": self._fitting.told(), "heads": self._accuracies(base), "judge": self._scores()}
        (self.folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")

    @property
    def trained(self) -> Path:
        """Where finished weights lie."""
        return self.folder / "weights"

    def rendered(self, who: str) -> Scenes:
        """Returns pictures of one of `SEEDS`, rendered at the first call."""
        count = max(8, round(_COUNTS[who] * min(1.0, self.effort)))
        return render_to(self.folder / who, OneObject(), count, SEEDS[who], progress=self.progress)

    @cached_property
    def _fitting(self) -> Fitting:
        return Fitting(self.folder / "run", effort=self.effort, progress=self.progress)

    def _judge(self) -> None:
        scenes = self.rendered("judge")
        judge = self._fitting.judge(scenes.images, _tensors(scenes.labels), _STEPS["judge"])
        weights.write(judge, "judge", self.trained)

    def _autoencoder(self) -> Autoencoder:
        images = self.rendered("train").images
        coder = self._fitting.autoencoder(images, CODE, _STEPS["autoencoder"], _STEPS["decoder"])
        weights.write(coder, "autoencoder", self.trained)
        return coder

    def _base(self, coder: Autoencoder) -> CodeEnergy:
        with self._fitting.seeded("base"):
            base = CodeEnergy(64, code=CODE, sigma_min=SIGMAS[0], sigma_max=SIGMAS[1])
        base.autoencoder.load_state_dict(coder.state_dict())
        self._fitting.base(base, self._codes(coder, "train"), _STEPS["base"], _STEPS["refining"])
        weights.write(base.net, "base", self.trained)
        return base

    def _heads(self, base: CodeEnergy) -> None:
        for name, classes in (("position", 0), ("color", len(COLORS)), ("shape", len(KINDS)), ("size", 0), ("light", 0)):
            codes, told = self._own(base, name)
            if classes:
                head = self._fitting.classes(base, codes, told, classes, name, _STEPS["head"], HEADS_WIDTH)
            else:
                head = self._fitting.values(base, codes, told, name, _STEPS["head"], HEADS_WIDTH)
            weights.write(head, name, self.trained)

    def _conditionals(self, base: CodeEnergy) -> None:
        for name, options in (("color", {"classes": len(COLORS)}), ("position", {"dims": 2})):
            energy = ConditionalEnergy(base, **options)
            self._fitting.conditional(energy, *self._own(base, name), f"of_{name}", SIGMAS, _STEPS["conditional"])
            weights.write(energy.net, f"of_{name}", self.trained)

    def _own(self, base: CodeEnergy, name: str) -> tuple[Tensor, Tensor]:
        """Returns the codes of the pictures that a concept is trained on, and what is told of them."""
        who = "light" if name == "light" else "train"
        codes, labels = self._codes(base.autoencoder, who), self.rendered(who).labels
        first = _PLACES.get(name, 0) * len(codes) // (1 if who == "light" else len(_PLACES))
        rows = slice(first, first + min(_OWN, len(codes) // (1 if who == "light" else len(_PLACES))))
        return codes[rows], torch.from_numpy(labels[name][rows])

    def _codes(self, coder: Autoencoder, who: str) -> Tensor:
        target = self.folder / f"codes-{who}.npy"
        if not target.exists():
            half = target.with_suffix(".half.npy")
            np.save(half, encoded(coder, self.rendered(who).images).numpy())
            half.replace(target)
        return torch.from_numpy(np.load(target))

    @torch.no_grad()
    def _accuracies(self, base: CodeEnergy) -> dict[str, float]:
        """Returns how right the heads are about renders that nothing was trained on: shares of classes, mean sizes of errors of numbers."""
        from .concepts import Concepts

        concepts, scenes = Concepts(self.trained), self.rendered("test")
        codes, truth = encoded(base.autoencoder, scenes.images), _tensors(scenes.labels)
        found = {
            name: float((-event.logits(codes)).argmin(1).eq(truth[name]).float().mean())
            for name, event in (("color", concepts.color()), ("shape", concepts.shape()))
        }
        for name, head in (("position", concepts.position), ("size", concepts.size), ("light", concepts.light)):
            means = head.network(codes)[:, : head.dims]
            found[name] = float((means - truth[name].reshape(means.shape)).abs().mean())
        return found

    @torch.no_grad()
    def _scores(self) -> dict[str, dict[str, float]]:
        """Returns what the judge sees in renders, and in the same after the autoencoder, that nothing was trained on."""
        from .concepts import Concepts, load_judge

        scenes, concepts = self.rendered("test"), Concepts(self.trained)
        images, truth, judge = torch.from_numpy(np.array(scenes.images)).float() / 255, _tensors(scenes.labels), load_judge(self.trained)
        coder = concepts.base.autoencoder
        through = torch.cat([coder(coder.encode(part)) for part in images.split(500)])
        found = {}
        for name, pictures in (("renders", images), ("autoencoder", through)):
            seen = judged(pictures, judge)
            found[name] = {
                "position within .4": float(((seen.position - truth["position"]).abs() < 0.4).all(1).float().mean()),
                "position error": float((seen.position - truth["position"]).abs().mean()),
                "size error": float((seen.size - truth["size"]).abs().mean()),
                "shape": float((seen.shape == truth["shape"]).float().mean()),
                "color": float((seen.color == truth["color"]).float().mean()),
                "light cosine": float(torch.nn.functional.cosine_similarity(seen.light, truth["light"]).mean()),
            }
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Those of the command line, or None to read them.
    """
    parser = argparse.ArgumentParser(prog="python -m composable_energy_scenes.train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything is kept; 2 GB")
    parser.add_argument("--effort", type=float, default=1.0, help="multiplies the steps of every training; 1 if not given")
    parser.add_argument("--install", action="store_true", help="copy the weights into the package")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    making = Making(options.out, options.effort)
    making.make()
    if options.install:
        weights.FOLDER.mkdir(exist_ok=True)
        for path in [*making.trained.glob("*.safetensors"), options.out / "report.json"]:
            shutil.copy(path, weights.FOLDER)


def _tensors(labels: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(values)) for name, values in labels.items()}


if __name__ == "__main__":
    main()
