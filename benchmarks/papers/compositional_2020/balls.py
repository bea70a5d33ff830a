"""The pictures of extrapolation: red balls, with all sizes at some positions and one size elsewhere."""

from __future__ import annotations

import numpy as np

from composable_energy_image.data import Scenes
from composable_energy_scenes import COLORS, KINDS, SIZES, OneObject

RATIOS = (0.01, 0.1, 1.0)
SIDE = 20  # positions on a side, and sizes
POSITIONS = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij"), -1).reshape(-1, 2)
STEPS = np.linspace(*SIZES, SIDE)
SEEDS = {"position": 31, "size": 32, "evaluator": 33}  # of lamps and floors
PICTURES = {"position": 4_000, "size": 8_000, "evaluator": 10_000}


def positions_with_all_sizes(ratio: float) -> np.ndarray:
    """Returns the positions that show all sizes: the first int(400 ratio) + 1 of them, as in the released code."""
    return np.arange(min(int(len(POSITIONS) * ratio) + 1, len(POSITIONS)))


def test_pairs(ratio: float) -> np.ndarray:
    """Returns the test pairs of a position and a size, with shape $(N, 2)$: those that no set has, or all pairs if there are none."""
    pairs = np.stack(np.meshgrid(np.arange(len(POSITIONS)), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2)
    new = (pairs[:, 0] > positions_with_all_sizes(ratio)[-1]) & (pairs[:, 1] < SIDE - 1)
    return pairs[new] if new.any() else pairs


def balls(n: int, seed: int, position: np.ndarray, size: np.ndarray) -> Scenes:
    """Returns pictures of red balls under random lamps on random floors."""
    world = OneObject()
    labels = {"position": position, "size": size, "shape": np.full(n, KINDS.index("sphere")), "color": np.full(n, COLORS.index("red"))}
    return world.render(world.labels(n, seed) | labels)


def training_pairs(ratio: float) -> dict[str, np.ndarray]:
    """Returns the training pairs of a position and a size of each concept, with shape $(N, 2)$, with repetitions."""
    places, pair = positions_with_all_sizes(ratio), np.arange(PICTURES["size"])
    large = np.arange(PICTURES["position"]) % len(POSITIONS)
    return {
        "position": np.stack([large, np.full_like(large, SIDE - 1)], 1),
        "size": np.stack([places[pair // SIDE % len(places)], pair % SIDE], 1),
    }
