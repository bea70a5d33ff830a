r"""Which condition fits a picture: `E.infer` beside a supervised network.

    python -m benchmarks.papers.compositional_2020.inference [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

Energies of images can be inverted: $p(c \mid x) \propto e^{-E(x \mid c)}$ (section 4.5 of the paper). Three methods read renders of a seed
that no training used:

- **heads**: `position().infer(images, over={"c": points})` with the evidence of the concept, trained on 24,000 pictures;
- **conditional**: `of_position().infer(...)` with the energy $E(x \mid c)$, as in the paper: it has a free constant for each condition;
- **supervised**: a network like the evaluator, trained on the same 24,000 pictures with all of their labels. The first call trains it, in
  some four minutes of one core, and keeps it in `.cache/`.

Candidates form a grid, and the answer to a continuous question is the mean over it, `Inference.mean`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.compositional_2020.claims import Evaluator, Options, evaluate, render, run_experiment, share
from benchmarks.papers.experiment import COMPOSITIONAL
from composable_energy_scenes import COLORS, KINDS, SIZES, OneObject
from composable_energy_scenes.network_trainer import NetworkTrainer

CACHE = COMPOSITIONAL.cache / "regressor"
LABELLED = 24_000
STEPS = 3_000
FINE = 81


def grid_of(count: int) -> Tensor:
    """Returns positions on a square grid over [-1, 1], with shape $(count^2, 2)$."""
    axis = torch.linspace(-1, 1, count)
    return torch.cartesian_prod(axis, axis)


def supervised_network() -> Evaluator:
    """Returns a network that is trained with all labels of the heads' training pictures."""
    return NetworkTrainer(CACHE).train_judge(OneObject().draw(LABELLED, 1), STEPS)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Returns the angles between directions with shape $(B, 2)$, in degrees."""
    return torch.rad2deg(torch.acos(torch.cosine_similarity(a, b).clamp(-1, 1)))


def single(options: Options, network: Evaluator) -> list[dict[str, Any]]:
    """Returns the errors of all methods for each condition, from one picture."""
    concepts = options.concepts
    images, truth = render(options.samples, options.seed)
    found, points, coarse = evaluate(images, network), grid_of(FINE), grid_of(41)
    sizes = torch.linspace(*SIZES, 81)[:, None]
    directions = torch.linspace(0, 2 * np.pi, 181)[:-1]
    directions = torch.stack([directions.cos(), directions.sin()], 1)

    def error(values: Tensor, name: str) -> float:
        return float((values.reshape(truth[name].shape) - truth[name]).abs().mean())

    def right(energy: ce.Energy, name: str, count: int) -> float:
        return share(energy.infer(images, over={"y": range(count)}).log_probabilities.argmax(1) == truth[name])

    where = concepts.position().infer(images, over={"c": points})
    light = concepts.light().infer(images, over={"c": directions}).mean("c")
    rows: list[dict[str, Any]] = [
        {
            "condition": "position, mean error",
            "heads": error(where.mean("c"), "position"),
            "conditional": error(concepts.of_position().infer(images, over={"y": coarse}).mean("y"), "position"),
            "supervised": error(found.position, "position"),
            "chance": float(truth["position"].abs().mean()),
        },
        {
            "condition": "size, mean error",
            "heads": error(concepts.size().infer(images, over={"c": sizes}).mean("c"), "size"),
            "supervised": error(found.size, "size"),
            "chance": float((truth["size"] - 0.5).abs().mean()),
        },
        {
            "condition": "light, degrees",
            "heads": float(angle(light, truth["light"]).mean()),
            "supervised": float(angle(found.light, truth["light"]).mean()),
            "chance": 90.0,
        },
        {
            "condition": "color, right",
            "heads": right(concepts.color(), "color", len(COLORS)),
            "conditional": right(concepts.of_color(), "color", len(COLORS)),
            "supervised": share(found.color == truth["color"]),
            "chance": 1 / len(COLORS),
        },
        {
            "condition": "shape, right",
            "heads": right(concepts.shape(), "shape", len(KINDS)),
            "supervised": share(found.shape == truth["shape"]),
            "chance": 1 / len(KINDS),
        },
    ]
    return rows


def run(options: Options) -> dict[str, Any]:
    return {"one picture": single(options, supervised_network())}


if __name__ == "__main__":
    run_experiment("inference", __doc__, run)
