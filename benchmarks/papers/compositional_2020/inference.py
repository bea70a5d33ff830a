r"""Which condition fits pictures: `E.infer` beside a supervised network, and a position from one picture and from up to ten.

    python -m benchmarks.papers.compositional_2020.inference [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

Energies of images can be inverted: $p(c \mid x) \propto e^{-E(x \mid c)}$, and for several pictures with one condition the energies add
(section 4.5 of the paper). Three methods read renders of seeds that no training used:

- **heads**: `position().infer(images, over={"c": points})` with the evidence of the concept, trained on 24,000 pictures;
- **conditional**: `of_position().infer(...)` with the energy $E(x \mid c)$, as in the paper: it has a free constant for each condition;
- **supervised**: a network like the evaluator, trained on the same 24,000 pictures with all of their labels. The first call trains it, in
  some four minutes of one core, and keeps it in `.cache/`.

Candidates form a grid, and the answer to a continuous question is the mean over it, `Inference.mean`. Several pictures share the position
and have all else at random; the answers of the supervised network are averaged. 20 seeds with 50 positions each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.compositional_2020.evaluation import Evaluator, accuracy, evaluate, render, share
from benchmarks.papers.compositional_2020.options import Options, run_experiment
from benchmarks.papers.experiment import COMPOSITIONAL, arrange_grid, print_table
from composable_energy_scenes import COLORS, KINDS, SIZES, OneObject
from composable_energy_scenes.network_trainer import NetworkTrainer

CACHE = COMPOSITIONAL.cache / "regressor"
LABELLED = 24_000
STEPS = 3_000
SEEDS, POSITIONS, MOST = 20, 50, 10
FINE = 81


def grid_of(count: int) -> Tensor:
    """Returns positions on a square grid over [-1, 1], with shape $(count^2, 2)$."""
    axis = torch.linspace(-1, 1, count)
    return torch.cartesian_prod(axis, axis)


def supervised_network() -> Evaluator:
    """Returns a network that is trained with all labels of the heads' training pictures."""
    scenes = OneObject().draw(LABELLED, 1)
    return NetworkTrainer(CACHE).train_judge(scenes.images, {name: torch.from_numpy(value) for name, value in scenes.labels.items()}, STEPS)


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


def views(positions: int, each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns positions, with shape $(positions, 2)$, and pictures of each in turn with all else random."""
    world = OneObject()
    labels = world.labels(positions * each, seed)
    labels["position"] = np.repeat(labels["position"][::each], each, 0)
    images = torch.from_numpy(world.render(labels).images).float() / 255
    return torch.from_numpy(labels["position"][::each]), images


def position_errors(options: Options, network: Evaluator, seed: int) -> dict[str, Tensor]:
    """Returns for each method the mean error of positions from 1, ..., 10 pictures."""
    truth, images = views(POSITIONS, MOST, seed)
    points = grid_of(FINE)
    each = options.concepts.position().infer(images, over={"c": points}).log_probabilities
    added = cumulative_inference(each.unflatten(0, (POSITIONS, MOST))) @ points
    mean = evaluate(images, network).position.unflatten(0, (POSITIONS, MOST)).cumsum(1) / torch.arange(1, MOST + 1)[:, None]
    return {name: (found - truth[:, None]).abs().mean((0, 2)) for name, found in (("heads", added), ("supervised", mean))}


def cumulative_inference(logs: Tensor) -> Tensor:
    """Returns the distributions given the first, the first two, ... pictures; the last equals `infer(..., joint=True)` for all of them.

    Args:
        logs: Log probabilities given each picture alone, with shape $(*, n, K)$.
    """
    return logs.double().cumsum(-2).softmax(-1).to(logs)


def maps(options: Options, seed: int) -> Tensor:
    """Returns pictures of one position, with the distributions given each picture and given all so far, on a square root scale."""
    _, images = views(1, MOST, seed)
    logs = options.concepts.position().infer(images, over={"c": grid_of(FINE)}).log_probabilities

    def heat_maps(distributions: Tensor) -> Tensor:
        table = distributions.unflatten(1, (FINE, FINE)).transpose(1, 2).flip(1)[:, None]  # right is right, away is up
        small = torch.nn.functional.adaptive_max_pool2d(table, 64)
        return (small / small.amax((2, 3), keepdim=True)).sqrt().expand(-1, 3, -1, -1)

    return arrange_grid(torch.cat([images, heat_maps(logs.exp()), heat_maps(cumulative_inference(logs))]), MOST)


def several_pictures(options: Options, network: Evaluator) -> dict[str, Any]:
    """Prints and returns the mean errors of positions over several pictures."""
    found = [position_errors(options, network, 1000 * options.seed + number) for number in range(SEEDS)]
    curves = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    means = {name: curve.mean(0).tolist() for name, curve in curves.items()}
    errors = {name: (curve.std(0) / SEEDS**0.5).tolist() for name, curve in curves.items()}
    falls = bool((torch.tensor(means["heads"]).diff() < 0).all())
    rows = [
        {"pictures": k + 1, **{name: means[name][k] for name in means}, "standard error": errors["heads"][k], "1/sqrt(k)": (k + 1) ** -0.5}
        for k in range(MOST)
    ]
    print_table(f"Position error from several pictures, mean of {SEEDS} seeds; falls with every picture: {falls}", rows)
    return {"mean": means, "standard error": errors, "falls": falls, "seeds": SEEDS, "positions of each": POSITIONS}


def run(options: Options) -> dict[str, Any]:
    """Prints the tables and returns their figures."""
    network = supervised_network()
    known = accuracy(options.evaluator)
    print_table("Accuracy of the evaluator on renders", [known])
    rows = single(options, network)
    print_table(f"One picture, {options.samples} renders", rows)
    several = several_pictures(options, network)
    return {"evaluator": known, "one picture": rows, "several pictures": several, "picture": maps(options, options.seed)}


if __name__ == "__main__":
    run_experiment("inference", __doc__, run)
