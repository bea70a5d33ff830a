"""The energy map of two cubes: the energy of a position is low at both cubes, although training pictures have the label of one object each.

    python -m benchmarks.papers.compositional_2020.two_cubes [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

The paper shows two such maps. Here the two highest maxima of the probability are compared with the positions of the cubes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.papers.compositional_2020.evaluation import share
from benchmarks.papers.compositional_2020.options import Options, run_experiment
from benchmarks.papers.compositional_2020.several_objects import match_objects
from benchmarks.papers.experiment import print_table
from composable_energy_scenes import load_multi_object, multi_object_world

STEPS = 41
PLACES = torch.cartesian_prod(*[torch.linspace(-1, 1, STEPS)] * 2).flip(1)
"""Positions of the map: a grid over the floor with steps of .05, rows from near to far."""


def run(options: Options) -> dict[str, Any]:
    """Prints the table and returns its figures."""
    several = load_multi_object(options.weights / "several")
    scenes = multi_object_world(count=(2, 2), shapes=("box",)).draw(options.samples, options.seed)
    images, cubes = torch.from_numpy(scenes.images).float() / 255, torch.from_numpy(scenes.labels["position"])
    codes = torch.cat([several.base.coder.encode(part) for part in images.split(250)])
    energies = several.presence.map(codes, PLACES)
    tops = torch.stack([peaks(energy, 2) for energy in energies])
    rows = [
        {"places": name} | figures for name, figures in (("energy map", _scores(tops, cubes)), ("chance", _scores(tops.roll(1, 0), cubes)))
    ]
    print_table("Two cubes: the two highest maxima within .4 of them on each axis (goal .90)", rows)
    return {"rows": rows}


def peaks(energy: Tensor, k: int) -> Tensor:
    """Returns the k lowest local minima of an energy on the grid, with shape $(k, 2)$, the lowest first; NaN where there are fewer.

    A minimum is no higher than its eight neighbors.
    """
    floor = -energy.view(1, 1, STEPS, STEPS)
    high = floor.masked_fill(floor < F.max_pool2d(floor, 3, 1, 1), -torch.inf).flatten()
    values, order = high.topk(k)
    return PLACES[order].masked_fill(values.isinf()[:, None], torch.nan)


def _scores(tops: Tensor, cubes: Tensor) -> dict[str, float]:
    pairs = [match_objects(found, wanted) for found, wanted in zip(tops.nan_to_num(9.0), cubes, strict=True)]
    near, off = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return {"both": share(near.all(1)), "each": share(near), "error": float(off[near].mean())}


if __name__ == "__main__":
    run_experiment("two_cubes", __doc__, run)
