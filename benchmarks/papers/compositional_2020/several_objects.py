"""Several objects: conjunctions of two and of three positions, each trained on pictures with the label of one object.

    python -m benchmarks.papers.compositional_2020.several_objects [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

The paper shows such pictures without figures. Here a detector looks for an object near each requested place.
"""

from functools import reduce
from operator import and_
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.compositional_2020.claims import TOLERANCE, Options, run_experiment, share
from benchmarks.papers.experiment import arrange_grid
from composable_energy_scenes import Presence, detect_objects, load_detector, load_multi_object, multi_object_world

TARGETS = {2: 0.85, 3: 0.65}
WEIGHTS = (1.0, 8.0)
"""Weights of the evidence: that of the exact posterior, and the one with goals, which was chosen on seed 5."""

TRUTH_SEED = 3
"""Seed of the renders that test the detector."""

STEPS = 41
PLACES = torch.cartesian_prod(*[torch.linspace(-1, 1, STEPS)] * 2).flip(1)
"""Positions of the map: a grid over the floor with steps of .05, rows from near to far."""


def peaks(energy: Tensor, k: int) -> Tensor:
    """Returns the k lowest local minima of an energy on the grid, with shape $(k, 2)$, the lowest first; NaN where there are fewer.

    A minimum is no higher than its eight neighbors.
    """
    floor = -energy.view(1, 1, STEPS, STEPS)
    high = floor.masked_fill(floor < F.max_pool2d(floor, 3, 1, 1), -torch.inf).flatten()
    values, order = high.topk(k)
    return PLACES[order].masked_fill(values.isinf()[:, None], torch.nan)


def two_cubes(options: Options, several: Any) -> list[dict[str, Any]]:
    """Returns the shares of cubes at the two lowest minima of the energy of a position, which the paper shows as maps."""
    images, cubes = _renders(2, options.samples, options.seed, shapes=("box",))
    codes = torch.cat([several.base.coder.encode(part) for part in images.split(250)])
    energies = several.presence.map(codes, PLACES)
    tops = torch.stack([peaks(energy, 2) for energy in energies])
    named = {"energy map": tops, "chance": tops.roll(1, 0)}
    return [{"places": name, "both": scores(list(found.nan_to_num(9.0)), cubes)["all found"]} for name, found in named.items()]


def run(options: Options) -> dict[str, Any]:
    folder = options.weights / "several"
    several, detector = load_multi_object(folder), load_detector(folder)
    rows, pictures = [], []
    for k in TARGETS:
        truth = _renders(k, options.samples, TRUTH_SEED)
        rows.append({"objects": k, "pictures": "renders"} | scores(detect_objects(truth[0], detector), truth[1]))
        places = requested_places(k, options.samples, options.seed)
        energy, images, found = conjunction(several.presence, places), truth[0], []
        for weight in WEIGHTS:
            images = energy.sharpened(weight).sample(options.samples, seed=options.seed)
            found = detect_objects(images, detector)
            rows.append({"objects": k, "pictures": f"sampled, weight {weight:g}", "target": TARGETS[k]} | scores(found, places))
        rows.append({"objects": k, "pictures": "chance: places of another picture"} | scores(found, places.roll(1, 0)))
        pictures.append(_add_maps(images[:32], places[:32]))
    return {"rows": rows, "two cubes": two_cubes(options, several), "pictures": {"several_objects": arrange_grid(torch.cat(pictures))}}


def conjunction(presence: Presence, places: Tensor) -> ce.Energy:
    """Returns the energy of pictures with an object at each of some places, with shape $(n, k, 2)$: one of $n$ rows for each chain."""
    return reduce(and_, [presence.near(place) for place in places.unbind(1)])


def requested_places(k: int, n: int, seed: int) -> Tensor:
    """Returns places of $k$ objects of the world, with shape $(n, k, 2)$."""
    return torch.from_numpy(multi_object_world(count=(k, k)).labels(n, seed)["position"])


def scores(found: list[Tensor], places: Tensor) -> dict[str, float]:
    """Returns how often all objects, and each, are found at their places."""
    near = torch.stack([match_objects(some, wanted) for some, wanted in zip(found, places, strict=True)])
    return {"all found": share(near.all(1)), "each found": share(near)}


def match_objects(found: Tensor, wanted: Tensor) -> Tensor:
    """Returns which places have an object within the tolerance, if as many as possible are matched with one."""
    far = (wanted[:, None] - found[None]).abs().amax(2)
    places, objects = linear_sum_assignment((far + 100.0 * (far >= TOLERANCE)).numpy())
    near = torch.zeros(len(wanted), dtype=torch.bool)
    near[places] = far[places, objects] < TOLERANCE
    return near


def _renders(k: int, n: int, seed: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Returns pictures of $k$ objects and their places, with shape $(n, k, 2)$."""
    scenes = multi_object_world(count=(k, k), **options).draw(n, seed)
    return torch.from_numpy(scenes.images).float() / 255, torch.from_numpy(scenes.labels["position"])


def _add_maps(images: Tensor, places: Tensor) -> Tensor:
    """Returns pictures with a small map of the places below: the floor from above, with a point for each place."""
    width = images.shape[3]
    maps = torch.full((len(images), 3, width // 2, width), 1.0)
    maps[..., 1:-1, width // 4 + 1 : -width // 4 - 1] = 0.85
    across = (width // 4 + (places[..., 0] + 1) / 2 * (width // 2 - 5) + 1).long()
    down = ((1 - places[..., 1]) / 2 * (width // 2 - 5) + 1).long()
    for i, (columns, rows) in enumerate(zip(across.tolist(), down.tolist(), strict=True)):
        for column, row in zip(columns, rows, strict=True):
            maps[i, :, row : row + 3, column : column + 3] = 0.0
    return torch.cat([images, maps], 2)


if __name__ == "__main__":
    run_experiment("several_objects", __doc__, run)
