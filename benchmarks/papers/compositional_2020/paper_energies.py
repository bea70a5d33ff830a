r"""The energies of the 2020 paper on `one-object`: one network of pixels for each concept, trained by contrastive divergence.

Each is conditional, $E(x \mid y)$, and has a training set of its own with all other attributes at random. Networks and budgets are small,
so that everything runs on one core; `SETTINGS` lists the differences from the paper. `paper_method --train FOLDER` trains them, and
continues a training that was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import composable_energy as ce
from composable_energy_image.data import Scenes, open_scenes, render_to
from composable_energy_image.network_training import CostLog
from composable_energy_scenes import COLORS, KINDS, OneObject, weights
from composable_energy_training import Checkpoints, ContrastiveDivergence, Optimizer, ProgressBar, Trainer

WEIGHTS = Path(__file__).parent / "weights"
CONCEPTS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {"position": {"numbers": 2}, "color": {"labels": len(COLORS)}, "shape": {"labels": len(KINDS)}, "size": {"numbers": 1}}
)
"""The condition of each network, in the order of their training sets."""

SIZE = 32
STEP, NOISE = 500.0, 0.005
"""A step of a chain is $x' = \\text{clamp}(x - \\text{STEP}\\, \\nabla E(x) + \\text{NOISE}\\, \\xi)$."""

EACH, SEED = 16_000, 1
K, BATCH, BUFFER, RATE, EMA = 8, 16, 256, 1e-3, 0.99
STEPS: Mapping[str, int] = MappingProxyType({"position": 2250, "color": 1750, "shape": 2000, "size": 1250})
SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "pixels": f"{SIZE} (paper: 64)",
        "network": "igebm-dsprites, width 16, swish, spectral norms (paper: residual, width 64; compositional-64 here)",
        "objective": "contrastive divergence, squares of energies with weight 1 (the same)",
        "step, noise": f"{STEP:g}, {NOISE} (paper: 100, .001 in training and .005 when energies are combined)",
        "steps of a chain for each of training": f"{K} (paper: 60)",
        "batch, buffer, fresh starts": f"{BATCH}, {BUFFER}, .05 (paper: 16, 10,000, .05)",
        "rate, average of weights": f"{RATE}, {EMA} (paper: 3e-4, none)",
        "steps of training": "{position}, {color}, {shape}, {size} (paper: some 24,000)".format(**STEPS),
        "pictures of each concept": f"{EACH} (paper: 200,000 in all)",
    }
)


def network(concept: str) -> ce.Energy:
    """Returns the untrained network of a concept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ce.get("energy", "igebm-dsprites", size=SIZE, channels=3, width=16, activation="swish", **CONCEPTS[concept])


def load(folder: Path = WEIGHTS) -> dict[str, ce.Energy]:
    """Returns the trained energies by concept."""
    return {concept: weights.read(network(concept), f"paper-{concept}", folder) for concept in CONCEPTS}


def condition_of(concept: str, values: Tensor) -> Tensor:
    """Returns labels of the world as conditions of the networks: sizes in [-1, 1], the others unchanged."""
    return (values - 0.5) / 0.2 if concept == "size" else values


def reduce(images: Tensor) -> Tensor:
    """Returns pictures of 64 pixels at the size of the energies, averaged over squares of four pixels."""
    return F.avg_pool2d(images, 2)


def enlarge(images: Tensor) -> Tensor:
    """Returns pictures of the energies at the size that the evaluator takes."""
    return F.interpolate(images, size=64, mode="bilinear", align_corners=False)


def train(folder: Path, steps: Mapping[str, int] = STEPS, *, to: Path = WEIGHTS, progress: bool = True) -> None:
    """Trains the energies and writes their weights; each has a folder of its own with checkpoints."""
    scenes = _scenes(folder / "scenes", progress)
    for concept, count in steps.items():
        energy, first = network(concept), EACH * list(CONCEPTS).index(concept)
        rows = slice(first, first + EACH)
        images = torch.cat([reduce(torch.from_numpy(part).float() / 255) for part in np.array_split(np.array(scenes.images[rows]), 16)])
        values = condition_of(concept, torch.from_numpy(np.array(scenes.labels[concept][rows])))
        chains = {"step_size": 2 * STEP, "temperature": NOISE**2 / (2 * STEP), "clamp": (0.0, 1.0)}
        Trainer(
            energy,
            ContrastiveDivergence(steps=K, options=chains, buffer=BUFFER, fresh=0.05, l2=1.0, condition=concept),
            (images, {concept: values}),
            steps=count,
            batch_size=BATCH,
            optimizer=Optimizer(rate=RATE, betas=(0.0, 0.999), warm_up=50, clip="adam", ema=EMA, precision="bfloat16"),
            callbacks=[Checkpoints(folder / concept, every=250, keep=1), CostLog(), *[ProgressBar()] * progress],
        ).fit()
        weights.write(energy, f"paper-{concept}", to)


def _scenes(folder: Path, progress: bool) -> Scenes:
    if (folder / "world.json").exists():
        return open_scenes(folder)
    return render_to(folder, OneObject(), EACH * len(CONCEPTS), SEED, progress=progress)
