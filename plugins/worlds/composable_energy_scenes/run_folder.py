"""Run folders of the training commands: renders, codes, checkpoints and weights, and the command line."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from composable_energy.files import replace_file
from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.data import Scenes, World, render_to
from composable_energy_scenes import weights
from composable_energy_scenes.network_trainer import NetworkTrainer, encode_images
from composable_energy_scenes.patches import PatchCoder


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
        """The folder of finished weights."""
        return self.folder / "weights"

    @cached_property
    def trainer(self) -> NetworkTrainer:
        """The trainer, with its checkpoints in this folder."""
        return NetworkTrainer(self.folder / "run", effort=self.effort, progress=self.progress)

    def render(self, use: str) -> Scenes:
        """Returns the renders for one use; the first call renders them."""
        count = max(8, round(self.counts[use] * min(1.0, self.effort)))
        return render_to(self.folder / use, self.world, count, self.seeds[use], progress=self.progress)

    def encode(self, coder: Autoencoder | PatchCoder, use: str) -> Tensor:
        """Returns the codes of the renders for one use; the first call encodes them."""
        target = self.folder / f"codes-{use}.npy"
        if not target.exists():
            file = BytesIO()
            np.save(file, encode_images(coder, self.render(use).images).numpy())
            replace_file(target, file.getvalue())
        return torch.from_numpy(np.load(target))

    def save(self, network: nn.Module, part: str) -> None:
        """Writes finished weights."""
        weights.write(network, part, self.weights)

    def write_report(self, **scores: Any) -> None:
        """Writes `report.json` with the costs of each training, and scores."""
        report = {"trainings": self.trainer.costs()} | scores
        replace_file(self.folder / "report.json", f"{json.dumps(report, indent=1)}\n".encode())


def run_command(train: Callable[[RunFolder], None], run: Callable[..., RunFolder], home: Path, arguments: Sequence[str] | None) -> None:
    """Runs the command of a module, whose first line is the description of `--help`, with one thread.

    It trains in the run folder that `run` makes of a path and a factor `effort`; `--install` copies weights and report to `home`.
    """
    module = sys.modules[train.__module__]
    name = module.__spec__.name if module.__spec__ else train.__module__
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=(module.__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the run folder; it needs 2 GB")
    parser.add_argument("--effort", type=float, default=1.0, help="factor of the training steps (default: 1)")
    parser.add_argument("--install", action="store_true", help="copy the weights into the package")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    done = run(options.out, effort=options.effort)
    train(done)
    if options.install:
        home.mkdir(parents=True, exist_ok=True)
        for path in [*done.weights.glob("*.safetensors"), done.folder / "report.json"]:
            shutil.copy(path, home)
