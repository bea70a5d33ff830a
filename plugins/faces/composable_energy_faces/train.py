r"""Trains the weights of the face energies, reproducibly from seeds.

    python -m composable_energy_faces.train --out FOLDER [--effort 1.0] [--install]

The steps: draw faces; train the judge; train the autoencoder, the base and the heads by the recipe `base-and-attributes`. Results are kept
in FOLDER, and after an interruption the same command resumes. The weights are in `FOLDER/weights`, the costs of each training in
`FOLDER/report.json`; `--install` copies both into the package.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

import composable_energy as ce
from composable_energy.files import replace_file
from composable_energy_faces import weights
from composable_energy_faces.data import SEEDS, draw_to
from composable_energy_faces.draw import ATTRIBUTES, VALUES
from composable_energy_faces.networks import CODE, SIGMA_MAX, SIGMA_MIN, SIZE, Judge
from composable_energy_image import CodeEnergy
from composable_energy_image.base_and_attributes import BaseAndAttributes, base_and_attributes
from composable_energy_image.data import Pictures, Preparation
from composable_energy_image.label_columns import label_loss
from composable_energy_image.network_training import read_costs, run_command, scaled, train_network
from composable_energy_training import Batch, Loss, Objective, Prepared

TRAINING_FACES, JUDGE_FACES = 120_000, 24_000

_STEPS = {"autoencoder": 5_500, "decoder": 6_000, "base": 20_000, "heads": 12_000}
_JUDGE_STEPS = 3_000


@dataclass(frozen=True)
class TrainingRun:
    """A training run in a folder; it resumes after an interruption."""

    folder: Path
    effort: float = 1.0

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    def train(self) -> None:
        """Trains all networks, or resumes, and writes the report."""
        self.train_judge(self.draw_faces("judge", JUDGE_FACES))
        self.train_energies(self.draw_faces("train", TRAINING_FACES))
        replace_file(self.folder / "report.json", f"{json.dumps({'trainings': self.costs()}, indent=1)}\n".encode())

    def draw_faces(self, use: str, count: int) -> Pictures:
        """Returns the faces for one of the uses in `SEEDS`; the first call draws them."""
        return draw_to(self.folder / f"drawn-{use}", max(1, round(count * min(1.0, self.effort))), SEEDS[use])

    def train_judge(self, faces: Pictures) -> None:
        """Trains the judge on faces with random shifts of up to two pixels and a little noise."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEEDS["judge"])
            judge = Judge()
        data, folder = Prepared(faces, Preparation(padding=2, dequantize=0.03)), self.folder / "judge"
        options = {"rate": 3e-3, "weight_decay": 1e-3, "ema": 0.998, "precision": "auto"}
        steps = scaled(_JUDGE_STEPS, self.effort)
        train_network(folder, judge, _AttributeLoss(), data, steps=steps, batch_size=96, progress=True, **options)
        weights.write(judge, "judge", self.weights)

    def train_energies(self, faces: Pictures) -> None:
        """Trains the autoencoder, the base and the heads by the recipe."""
        member = cast(ce.ClassifierEnergy, ce.load(self.recipe().train(faces, self.folder / "energies", progress=True) / ATTRIBUTES[0]))
        base = cast(CodeEnergy, member.bases[0].energy)
        for part, network in (("autoencoder", base.autoencoder), ("base", base.net), ("heads", cast(nn.Module, member.logits))):
            weights.write(network, part, self.weights)

    def recipe(self) -> BaseAndAttributes:
        """Returns the recipe with the settings for faces."""
        steps = {f"{stage}.steps": scaled(count, self.effort) for stage, count in _STEPS.items()}
        model = {"model.code": CODE, "model.sigma_min": SIGMA_MIN, "model.sigma_max": SIGMA_MAX}
        # The shipped weights were trained with networks of this form and a plain decoder.
        plain = {"adversarial": 0.0, "batch_size": 96, "rate": 1e-3, "decay": 0.7, "weight_decay": 1e-4}
        settings = {"data.size": SIZE, "data.held_out": 0.0, "small.below": 0, "model.balanced": False, "model.components": 0}
        settings["model.details"] = 0
        settings["autoencoder.naming"] = 0.018
        settings |= {f"decoder.{name}": value for name, value in plain.items()}
        return base_and_attributes().with_changes({**settings, **model, **steps})

    def costs(self) -> dict[str, dict[str, float]]:
        """Returns the steps, processor seconds and loss of each training."""
        energies = self.folder / "energies" / "stages"
        return {"judge": read_costs(self.folder / "judge")} | {stage: read_costs(energies / stage) for stage in _STEPS}


class _AttributeLoss(Objective):
    """The judge's objective: the cross entropy of the attributes."""

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        return Loss(label_loss(model(batch.x).float(), batch.labels, VALUES))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with arguments; those of the command line if None."""
    run_command(lambda folder, effort: TrainingRun(folder, effort).train(), weights.FOLDER, arguments)


if __name__ == "__main__":
    main()
