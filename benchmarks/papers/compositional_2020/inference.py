r"""Which condition fits pictures: `E.infer` beside a supervised network, and a position from one picture to ten of them.

    python benchmarks/papers/compositional_2020/inference.py [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

Energies of images answer the other way round: $p(c \mid x) \propto e^{-E(x \mid c)}$, and several pictures of one condition add up their
energies (section 4.5 of the paper). Three ways read renders of seeds that nothing was trained on:

- **heads**: `position().infer(images, over={"c": points})` of the evidence that the concept was trained for on 24,000 pictures;
- **conditional**: `of_position().infer(...)` of the energy $E(x \mid c)$, the paper's way: it has a free constant for each condition;
- **supervised**: a network like the judge, trained on the same 24,000 pictures, but with all of their labels. It is trained at the first
  call, for some four minutes of one core, and kept in `.cache/`.

Candidates are a grid, and the answer to a continuous question is the mean over it, `Inference.mean`. For several pictures the position is
the same and all else is random; the supervised network gets the mean of its answers. 20 seeds with 50 positions each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Options, accuracy, renders, share
from reporting import grid, main, show
from torch import Tensor

import composable_energy as ce
from composable_energy_scenes import COLORS, KINDS, SIZES, Judge, OneObject, judge_images
from composable_energy_scenes.network_trainer import NetworkTrainer

CACHE = Path(__file__).parents[3] / ".cache" / "compositional-2020" / "regressor"
LABELLED = 24_000
STEPS = 3_000
SEEDS, POSITIONS, MOST = 20, 50, 10
FINE = 81


def grid_of(count: int) -> Tensor:
    """Returns positions on a square grid over [-1, 1], with shape $(count^2, 2)$."""
    axis = torch.linspace(-1, 1, count)
    return torch.cartesian_prod(axis, axis)


def supervised() -> Judge:
    """Returns the network that is trained with the labels of the pictures that the heads learnt from."""
    scenes = OneObject().draw(LABELLED, 1)
    return NetworkTrainer(CACHE).train_judge(scenes.images, {name: torch.from_numpy(value) for name, value in scenes.labels.items()}, STEPS)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Returns the angles between directions with shape $(B, 2)$, in degrees."""
    return torch.rad2deg(torch.acos(torch.cosine_similarity(a, b).clamp(-1, 1)))


def single(options: Options, network: Judge) -> list[dict[str, Any]]:
    """Returns the errors of all ways, of each condition from one picture."""
    concepts = options.concepts
    images, truth = renders(options.samples, options.seed)
    seen, points, coarse = judge_images(images, network), grid_of(FINE), grid_of(41)
    sizes = torch.linspace(*SIZES, 81)[:, None]
    directions = torch.linspace(0, 2 * np.pi, 181)[:-1]
    directions = torch.stack([directions.cos(), directions.sin()], 1)

    def error(found: Tensor, name: str) -> float:
        return float((found.reshape(truth[name].shape) - truth[name]).abs().mean())

    def right(energy: ce.Energy, name: str, count: int) -> float:
        return share(energy.infer(images, over={"y": range(count)}).log_probabilities.argmax(1) == truth[name])

    where = concepts.position().infer(images, over={"c": points})
    light = concepts.light().infer(images, over={"c": directions}).mean("c")
    rows: list[dict[str, Any]] = [
        {
            "condition": "position, mean error",
            "heads": error(where.mean("c"), "position"),
            "conditional": error(concepts.of_position().infer(images, over={"y": coarse}).mean("y"), "position"),
            "supervised": error(seen.position, "position"),
            "chance": float(truth["position"].abs().mean()),
        },
        {
            "condition": "size, mean error",
            "heads": error(concepts.size().infer(images, over={"c": sizes}).mean("c"), "size"),
            "supervised": error(seen.size, "size"),
            "chance": float((truth["size"] - 0.5).abs().mean()),
        },
        {
            "condition": "light, degrees",
            "heads": float(angle(light, truth["light"]).mean()),
            "supervised": float(angle(seen.light, truth["light"]).mean()),
            "chance": 90.0,
        },
        {
            "condition": "color, right",
            "heads": right(concepts.color(), "color", len(COLORS)),
            "conditional": right(concepts.of_color(), "color", len(COLORS)),
            "supervised": share(seen.color == truth["color"]),
            "chance": 1 / len(COLORS),
        },
        {
            "condition": "shape, right",
            "heads": right(concepts.shape(), "shape", len(KINDS)),
            "supervised": share(seen.shape == truth["shape"]),
            "chance": 1 / len(KINDS),
        },
    ]
    return rows


def views(positions: int, each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns positions, with shape $(positions, 2)$, and pictures of each, one after another, of which all else is random."""
    world = OneObject()
    labels = world.labels(positions * each, seed)
    labels["position"] = np.repeat(labels["position"][::each], each, 0)
    images = torch.from_numpy(world.render(labels).images).float() / 255
    return torch.from_numpy(labels["position"][::each]), images


def together(options: Options, network: Judge, seed: int) -> dict[str, Tensor]:
    """Returns for each way the mean error of positions from 1, ..., 10 pictures."""
    truth, images = views(POSITIONS, MOST, seed)
    points = grid_of(FINE)
    each = options.concepts.position().infer(images, over={"c": points}).log_probabilities
    added = added_up(each.unflatten(0, (POSITIONS, MOST))) @ points
    mean = judge_images(images, network).position.unflatten(0, (POSITIONS, MOST)).cumsum(1) / torch.arange(1, MOST + 1)[:, None]
    return {name: (found - truth[:, None]).abs().mean((0, 2)) for name, found in (("heads", added), ("supervised", mean))}


def added_up(logs: Tensor) -> Tensor:
    """Returns the distributions given the first, the first two, ... of some pictures, with the shape of their logs, $(*, n, K)$.

    The last is what `infer(..., joint=True)` finds for all of them.
    """
    return logs.double().cumsum(-2).softmax(-1).to(logs)


def maps(options: Options, seed: int) -> Tensor:
    """Returns pictures of one position, the distribution over positions of each alone, and that of all so far, on a root scale."""
    _, images = views(1, MOST, seed)
    logs = options.concepts.position().infer(images, over={"c": grid_of(FINE)}).log_probabilities

    def seen(distributions: Tensor) -> Tensor:
        table = distributions.unflatten(1, (FINE, FINE)).transpose(1, 2).flip(1)[:, None]  # right is right, away is up
        small = torch.nn.functional.adaptive_max_pool2d(table, 64)
        return (small / small.amax((2, 3), keepdim=True)).sqrt().expand(-1, 3, -1, -1)

    return grid(torch.cat([images, seen(logs.exp()), seen(added_up(logs))]), MOST)


def run(options: Options) -> dict[str, Any]:
    """Prints the tables and returns their figures."""
    network = supervised()
    known = accuracy(options.judge)
    show("The judge on renders", [known])
    rows = single(options, network)
    show(f"One picture, {options.samples} renders", rows)
    found = [together(options, network, 1000 * options.seed + number) for number in range(SEEDS)]
    curves = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    means = {name: curve.mean(0).tolist() for name, curve in curves.items()}
    errors = {name: (curve.std(0) / SEEDS**0.5).tolist() for name, curve in curves.items()}
    falls = bool((torch.tensor(means["heads"]).diff() < 0).all())
    show(
        f"Position error from several pictures, mean of {SEEDS} seeds; falls with every picture: {falls}",
        [
            {
                "pictures": k + 1,
                **{name: means[name][k] for name in means},
                "standard error": errors["heads"][k],
                "1/sqrt(k)": (k + 1) ** -0.5,
            }
            for k in range(MOST)
        ],
    )
    several = {"mean": means, "standard error": errors, "falls": falls, "seeds": SEEDS, "positions of each": POSITIONS}
    return {"judge": known, "one picture": rows, "several pictures": several, "picture": maps(options, options.seed)}


if __name__ == "__main__":
    main("inference", __doc__, run)
