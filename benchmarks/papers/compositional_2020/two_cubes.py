"""The energy map of two cubes: where the energy of a position is low in pictures of two, though it was told of one object of each picture.

The paper shows two such maps. Here the two highest maxima of the probability are compared with where the cubes stand.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from common import Options, share
from reporting import grid, main, show
from several_objects import matched
from torch import Tensor

from composable_energy_scenes.multi_object import load_multi_object, multi_object_world

__all__ = ["PLACES", "peaks", "run"]

STEPS = 41
PLACES = torch.cartesian_prod(*[torch.linspace(-1, 1, STEPS)] * 2).flip(1)
"""Where the energy is asked for: a grid over the floor with steps of .05, rows from near to far."""


def run(options: Options) -> dict[str, Any]:
    """Prints the table and returns its figures."""
    several = load_multi_object(options.weights / "several")
    scenes = multi_object_world(count=(2, 2), shapes=("box",)).draw(options.samples, options.seed)
    images, cubes = torch.from_numpy(scenes.images).float() / 255, torch.from_numpy(scenes.labels["position"])
    codes = torch.cat([several.base.coder.encode(part) for part in images.split(250)])
    energies = several.presence.map(codes, PLACES)
    tops = torch.stack([peaks(energy, 2) for energy in energies])
    rows = [{"places": name} | told for name, told in (("energy map", _scores(tops, cubes)), ("chance", _scores(tops.roll(1, 0), cubes)))]
    show("Two cubes: the two highest maxima within .4 of them on each axis (goal .90)", rows)
    return {"rows": rows, "picture": grid(_maps(images[:32], energies[:32], tops[:32]))}


def peaks(energy: Tensor, k: int) -> Tensor:
    """Returns the places of the k lowest local minima of an energy on the grid, with shape $(k, 2)$, the lowest first.

    A minimum is no higher than its eight neighbors. Where there are fewer than k, the others are NaN.

    Args:
        energy: Of `PLACES`, with shape $(P,)$.
        k: How many.
    """
    floor = -energy.view(1, 1, STEPS, STEPS)
    high = floor.masked_fill(floor < F.max_pool2d(floor, 3, 1, 1), -torch.inf).flatten()
    values, order = high.topk(k)
    return PLACES[order].masked_fill(values.isinf()[:, None], torch.nan)


def _scores(tops: Tensor, cubes: Tensor) -> dict[str, float]:
    pairs = [matched(found, asked) for found, asked in zip(tops.nan_to_num(9.0), cubes, strict=True)]
    near, off = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return {"both": share(near.all(1)), "each": share(near), "error": float(off[near].mean())}


def _maps(images: Tensor, energies: Tensor, tops: Tensor) -> Tensor:
    """Returns pictures with the probability of each place beneath, the floor from above, far at the top; dots are the two maxima."""
    likely = (energies.amin(1, keepdim=True) - energies).exp().view(-1, 1, STEPS, STEPS).sqrt()
    likely = F.interpolate(likely.flip(2), size=images.shape[2:], mode="bilinear")
    maps = torch.cat([1 - likely, 1 - 0.6 * likely, 1 - 0.2 * likely], 1)
    last = images.shape[3] - 2
    for i, places in enumerate(tops.nan_to_num(0.0)):
        for x, y in places.tolist():
            column, row = round((x + 1) / 2 * (last - 1)), round((1 - y) / 2 * (last - 1))
            maps[i, :, row : row + 2, column : column + 2] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    return torch.cat([images, maps], 2)


if __name__ == "__main__":
    main("two_cubes", __doc__, run)
