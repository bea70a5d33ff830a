r"""Seven kinds of pictures that are no handwritten digits, told from digits by energies and by other scores.

    pip install -e '.[metrics,viz]' -c constraints.txt
    python -m benchmarks.papers.implicit_2019.out_of_distribution [--write] [--seeds 0 1 2]

400 test digits are compared with as many pictures of each kind: digits and letters printed with fonts, textures, noise, means of two
digits, inverted digits, and pictures of one grey. The area under the ROC curve is 1 if a score separates them, and .5 by chance; the second
measure is the share of other pictures that are accepted if 95 % of the digits are. Networks have 25,900 to 26,500 weights.

The energy is trained by denoising score matching at one level; a joint energy-based model, trained by chains, is beside it. Settings were
chosen on the split of seed 100 and on four other kinds of pictures: on their side, with exchanged halves, speckled, blurred.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.experiment import print_table
from benchmarks.papers.implicit_2019.networks import Autoencoder, Autoregressive, DigitEnergy, weights
from benchmarks.papers.implicit_2019.options import run_experiment, summary
from benchmarks.papers.implicit_2019.picture_sets import Split, choose_sets, corrupted, split, unusual_sets
from benchmarks.papers.implicit_2019.training import Joint, denoising, joint, minimise, softmax
from composable_energy_classification import (
    auroc,
    energy_score,
    fpr_at_95,
    gradient_score,
    histogram,
    relative_score,
    typicality_score,
    uncertainty_score,
)

LEVEL, JOINT = 0.2, Joint(noise=0.1, step_size=0.01)
BACKGROUND = 0.3  # the share of pixels that are replaced in the pictures of the background
STEPS = 2000  # of autoencoder and autoregressive network
Score = Callable[[Tensor], Tensor]


def scores(data: Split, seed: int) -> tuple[dict[str, Score], dict[str, float], dict[str, int]]:
    """Returns the scores by name, the processor seconds of the trainings, and the numbers of weights."""
    x, _ = data.training
    seconds: dict[str, float] = {}

    def timed(name: str, make: Callable[[], Any]) -> Any:
        began = time.process_time()
        made = make()
        seconds[name] = time.process_time() - began
        return made

    wider = corrupted(x, BACKGROUND, torch.Generator().manual_seed(seed))
    energy: ce.Energy = timed("energy", lambda: denoising(x, seed, LEVEL))
    background: ce.Energy = timed("background", lambda: denoising(wider, seed, LEVEL))
    jem: DigitEnergy = timed("JEM", lambda: joint(data.training, seed, JOINT))
    plain: DigitEnergy = timed("softmax", lambda: softmax(data.training, seed))
    coder, sequence = Autoencoder(), Autoregressive()
    timed("autoencoder", lambda: minimise(coder, lambda rows, _: coder(rows).mean(), data.training, STEPS, seed))
    timed("autoregressive", lambda: minimise(sequence, lambda rows, _: sequence(rows).mean(), data.training, STEPS, seed))
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
    networks = {"energy": energy, "JEM": jem, "softmax": plain, "autoencoder": coder, "autoregressive": sequence}
    return found, seconds, {name: weights(network) for name, network in networks.items()}


@torch.no_grad()
def measure(found: Mapping[str, Score], inside: Tensor, sets: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Returns areas and false positives of each score by kind, and the histograms of the energy."""
    rows: dict[str, dict[str, float]] = {}
    own = {name: score(inside) for name, score in found.items()}
    for name, score in found.items():
        rows[name] = {kind: auroc(own[name], score(pictures)) for kind, pictures in sets.items()}
        rows[name] |= {f"{kind}, false positives": fpr_at_95(own[name], score(pictures)) for kind, pictures in sets.items()}
    bars = {}
    for kind, pictures in sets.items():
        counts = histogram(own["energy"], found["energy"](pictures), bins=20, trim=0.01)
        bars[kind] = {"edges": counts.edges.tolist(), "digits": counts.inside.tolist(), "others": counts.outside.tolist()}
    return rows, bars


def run(seeds: Sequence[int]) -> dict[str, Any]:
    measured, chosen, seconds, bars, sizes = [], [], [], {}, {}
    for seed in seeds:
        data = split(seed)
        found, taken, sizes = scores(data, seed)
        rows, bars = measure(found, data.test[0], unusual_sets(*data.test, seed))
        measured.append(rows)
        chosen.append(measure(found, data.held_out[0], choose_sets(data.held_out[0], seed))[0])
        seconds.append(taken)
        print_table(f"seed {seed}, sets of the choice", [{"score": name, **row} for name, row in chosen[-1].items()])
    figures = {
        "weights": sizes,
        "scores": {name: summary([rows[name] for rows in measured]) for name in measured[0]},
        "sets of the choice": {name: summary([rows[name] for rows in chosen]) for name in chosen[0]},
        "training seconds": summary(seconds),
        "histograms of the energy": bars,
    }
    table = figures["scores"].items()
    print_table("areas, means over seeds", [{"score": name, **{kind: v["mean"] for kind, v in row.items()}} for name, row in table])
    return figures


if __name__ == "__main__":
    run_experiment("out_of_distribution", __doc__, run)
