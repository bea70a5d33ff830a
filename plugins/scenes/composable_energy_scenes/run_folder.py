"""What the commands that make weights have in common: a folder of renders, codes, trainings and weights, and a command's options."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.data import Scenes, World, render_to
from composable_energy_scenes import weights
from composable_energy_scenes.network_trainer import Fitting, encoded
from composable_energy_scenes.patches import PatchCoder

__all__ = ["Workshop", "command"]

_TRAINED = "weights"


@dataclass(frozen=True)
class Workshop:
    """A folder in which weights are made. Everything is kept, so that a run that was killed goes on where it was.

    Attributes:
        folder: Where everything is kept.
        world: What is rendered.
        seeds: Of the renders, by what they are for.
        counts: How many of each.
        effort: Multiplies the steps of every training and, below 1, the number of renders.
        progress: Whether to show bars.
    """

    folder: Path
    world: World
    seeds: Mapping[str, int]
    counts: Mapping[str, int]
    effort: float = 1.0
    progress: bool = True

    @property
    def trained(self) -> Path:
        """Where finished weights lie."""
        return self.folder / _TRAINED

    @cached_property
    def fitting(self) -> Fitting:
        """The trainings."""
        return Fitting(self.folder / "run", effort=self.effort, progress=self.progress)

    def rendered(self, who: str) -> Scenes:
        """Returns the pictures of one of `seeds`, rendered at the first call."""
        count = max(8, round(self.counts[who] * min(1.0, self.effort)))
        return render_to(self.folder / who, self.world, count, self.seeds[who], progress=self.progress)

    def codes(self, coder: Autoencoder | PatchCoder, who: str) -> Tensor:
        """Returns the codes of these pictures, made at the first call."""
        target = self.folder / f"codes-{who}.npy"
        if not target.exists():
            half = target.with_suffix(".half.npy")
            np.save(half, encoded(coder, self.rendered(who).images).numpy())
            half.replace(target)
        return torch.from_numpy(np.load(target))

    def keep(self, network: nn.Module, part: str) -> None:
        """Writes finished weights."""
        weights.write(network, part, self.trained)

    def report(self, **scores: Any) -> None:
        """Writes `report.json`: what each training cost, and scores."""
        (self.folder / "report.json").write_text(json.dumps({"trainings": self.fitting.told()} | scores, indent=1) + "\n")


def command(module: str, doc: str | None, make: Callable[[Path, float], None], home: Path, arguments: Sequence[str] | None) -> None:
    """Runs a command that makes weights, with one thread.

    Args:
        module: What `python -m` runs.
        doc: What it says with `--help`, of which the first line.
        make: Makes the weights in a `Workshop`, told its folder and the effort.
        home: Where `--install` copies weights and report to.
        arguments: Those of the command line, or None to read them.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything is kept; 2 GB")
    parser.add_argument("--effort", type=float, default=1.0, help="multiplies the steps of every training; 1 if not given")
    parser.add_argument("--install", action="store_true", help="copy the weights into the package")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    make(options.out, options.effort)
    if options.install:
        home.mkdir(parents=True, exist_ok=True)
        for path in [*(options.out / _TRAINED).glob("*.safetensors"), options.out / "report.json"]:
            shutil.copy(path, home)
