r"""Seven kinds of pictures that are no handwritten digits, told from digits by energies and by other scores.

    pip install -e '.[metrics,viz]' -c constraints.txt
    python -m benchmarks.papers.implicit_2019.out_of_distribution [--write] [--seeds 0 1 2]

400 test digits are compared with as many pictures of each kind: digits and letters printed with fonts, textures, noise, means of two
digits, inverted digits, and pictures of one grey. The area under the ROC curve is 1 if a score separates them, and .5 by
chance. Networks have 25,900 to 26,500 weights.

The energy is trained by denoising score matching at one level; a joint energy-based model, trained by chains, is beside it. Settings were
chosen on the split of seed 100 and on four other kinds of pictures: on their side, with exchanged halves, speckled, blurred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.experiment import IMPLICIT
from benchmarks.papers.implicit_2019.training import (
    SEEDS,
    Autoencoder,
    Autoregressive,
    DigitEnergy,
    Joint,
    Split,
    corrupted,
    denoising,
    joint,
    minimise,
    softmax,
    split,
    summary,
    unusual_sets,
)
from composable_energy_classification import auroc, energy_score, gradient_score, relative_score, typicality_score, uncertainty_score

LEVEL, JOINT = 0.2, Joint(noise=0.1, step_size=0.01)
BACKGROUND = 0.3  # the share of pixels that are replaced in the pictures of the background
STEPS = 2000  # of autoencoder and autoregressive network
Score = Callable[[Tensor], Tensor]


def scores(data: Split, seed: int) -> dict[str, Score]:
    """Trains the networks, and returns the scores by name."""
    x, _ = data.training
    wider = corrupted(x, BACKGROUND, torch.Generator().manual_seed(seed))
    energy: ce.Energy = denoising(x, seed, LEVEL)
    background: ce.Energy = denoising(wider, seed, LEVEL)
    jem: DigitEnergy = joint(data.training, seed, JOINT)
    plain: DigitEnergy = softmax(data.training, seed)
    coder, sequence = Autoencoder(), Autoregressive()
    minimise(coder, lambda rows, _: coder(rows).mean(), data.training, STEPS, seed)
    minimise(sequence, lambda rows, _: sequence(rows).mean(), data.training, STEPS, seed)
    known, held_out, own, other = x.flatten(1), data.held_out[0], jem.classifier(), plain.classifier()
    found: dict[str, Score] = {
        "energy": lambda points: energy_score(energy, points),
        "relative energy": lambda points: relative_score(energy, background, points),
        "gradient norm": lambda points: gradient_score(energy, points),
        "typicality": lambda points: typicality_score(energy, held_out, points),
        "JEM's energy": lambda points: energy_score(jem, points),
        "JEM's probability": lambda points: uncertainty_score(own, points),
        "softmax probability": lambda points: uncertainty_score(other, points),
        "nearest neighbour": lambda points: torch.cdist(points.flatten(1), known).amin(1),
        "reconstruction": coder,
        "autoregressive": sequence,
    }
    return found


@torch.no_grad()
def areas(found: Mapping[str, Score], inside: Tensor, sets: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Returns the areas of each score by kind."""
    own = {name: score(inside) for name, score in found.items()}
    return {name: {kind: auroc(own[name], score(pictures)) for kind, pictures in sets.items()} for name, score in found.items()}


def run(seeds: Sequence[int]) -> dict[str, Any]:
    measured = []
    for seed in seeds:
        data = split(seed)
        measured.append(areas(scores(data, seed), data.test[0], unusual_sets(*data.test, seed)))
    found = {name: summary([rows[name] for rows in measured]) for name in measured[0]}
    print(found)
    return {"scores": found}


if __name__ == "__main__":
    IMPLICIT.run("out_of_distribution", __doc__, lambda args: [run(args.seeds)], seeds=SEEDS)
