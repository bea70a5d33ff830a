r"""Makes the weights of the concepts of `one-object` from nothing but seeds.

    python -m composable_energy_scenes.train --out FOLDER [--effort 1.0] [--install]

In order: render, train the judge, then without labels an autoencoder of pictures and a base energy of its codes, and then each concept on
pictures of its own, in which all else is random. Each keeps what it has in FOLDER; the same command after a kill goes on from there. The
weights lie in `FOLDER/weights`, what each training cost in `FOLDER/report.json`; `--install` copies both into the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from composable_energy_image import CodeEnergy
from composable_energy_image.autoencoder import Autoencoder
from composable_energy_scenes import weights
from composable_energy_scenes.concepts import CODE, HEADS_WIDTH, SIGMAS
from composable_energy_scenes.conditional import ConditionalEnergy
from composable_energy_scenes.network_trainer import encoded
from composable_energy_scenes.judge import judged
from composable_energy_scenes.one_object import COLORS, OneObject
from composable_energy_scenes.renderer import KINDS
from composable_energy_scenes.run_folder import Workshop, command

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
        self.shop.report(heads=self._accuracies(base), judge=self._scores())

    @cached_property
    def shop(self) -> Workshop:
        """The folder in which it is done."""
        return Workshop(self.folder, OneObject(), SEEDS, _COUNTS, self.effort, self.progress)

    def _judge(self) -> None:
        scenes = self.shop.rendered("judge")
        judge = self.shop.fitting.judge(scenes.images, _tensors(scenes.labels), _STEPS["judge"])
        self.shop.keep(judge, "judge")

    def _autoencoder(self) -> Autoencoder:
        images = self.shop.rendered("train").images
        coder = self.shop.fitting.autoencoder(images, CODE, _STEPS["autoencoder"], _STEPS["decoder"])
        self.shop.keep(coder, "autoencoder")
        return coder

    def _base(self, coder: Autoencoder) -> CodeEnergy:
        with self.shop.fitting.seeded("base"):
            base = CodeEnergy(64, code=CODE, sigma_min=SIGMAS[0], sigma_max=SIGMAS[1])
        base.autoencoder.load_state_dict(coder.state_dict())
        self.shop.fitting.base(base, self.shop.codes(coder, "train"), _STEPS["base"], _STEPS["refining"])
        self.shop.keep(base.net, "base")
        return base

    def _heads(self, base: CodeEnergy) -> None:
        for name, classes in (("position", 0), ("color", len(COLORS)), ("shape", len(KINDS)), ("size", 0), ("light", 0)):
            codes, told = self._own(base, name)
            if classes:
                head = self.shop.fitting.classes(base, codes, told, classes, name, _STEPS["head"], HEADS_WIDTH)
            else:
                head = self.shop.fitting.values(base, codes, told, name, _STEPS["head"], HEADS_WIDTH)
            self.shop.keep(head, name)

    def _conditionals(self, base: CodeEnergy) -> None:
        for name, options in (("color", {"classes": len(COLORS)}), ("position", {"dims": 2})):
            energy = ConditionalEnergy(base, **options)
            self.shop.fitting.conditional(energy, *self._own(base, name), f"of_{name}", SIGMAS, _STEPS["conditional"])
            self.shop.keep(energy.net, f"of_{name}")

    def _own(self, base: CodeEnergy, name: str) -> tuple[Tensor, Tensor]:
        """Returns the codes of the pictures that a concept is trained on, and what is told of them."""
        who = "light" if name == "light" else "train"
        codes, labels = self.shop.codes(base.autoencoder, who), self.shop.rendered(who).labels
        first = _PLACES.get(name, 0) * len(codes) // (1 if who == "light" else len(_PLACES))
        rows = slice(first, first + min(_OWN, len(codes) // (1 if who == "light" else len(_PLACES))))
        return codes[rows], torch.from_numpy(labels[name][rows])

    @torch.no_grad()
    def _accuracies(self, base: CodeEnergy) -> dict[str, float]:
        """Returns how right the heads are about renders that nothing was trained on: shares of classes, mean sizes of errors of numbers."""
        from composable_energy_scenes.concepts import Concepts

        concepts, scenes = Concepts(self.shop.trained), self.shop.rendered("test")
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
        from composable_energy_scenes.concepts import Concepts, load_judge

        scenes, concepts = self.shop.rendered("test"), Concepts(self.shop.trained)
        images, truth, judge = (
            torch.from_numpy(np.array(scenes.images)).float() / 255,
            _tensors(scenes.labels),
            load_judge(self.shop.trained),
        )
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
    command("composable_energy_scenes.train", __doc__, lambda folder, effort: Making(folder, effort).make(), weights.FOLDER, arguments)


def _tensors(labels: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(values)) for name, values in labels.items()}


if __name__ == "__main__":
    main()
