"""The evaluation of pictures: a network reads their attributes, which are compared with the requested ones.

The evaluator is trained on renders of seed 2 and tested on renders of seed 3; the energies are trained on seed 1. Experiments use other
seeds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composable_energy_scenes import COLORS, KINDS, OneObject, load_judge
from composable_energy_scenes import Judge as Evaluator
from composable_energy_scenes import Verdict as Attributes
from composable_energy_scenes import judge_images as evaluate

__all__ = [
    "TOLERANCE",
    "Attributes",
    "Evaluator",
    "accuracy",
    "compare",
    "evaluate",
    "free_attributes",
    "load_evaluator",
    "near",
    "render",
    "share",
]

load_evaluator = load_judge
TOLERANCE = 0.4
"""The largest error of a correct position on each axis, the rule of the paper."""

TEST_SEED = 3


def render(n: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns rendered pictures in [0, 1], with shape $(n, 3, 64, 64)$, and their labels."""
    scenes = OneObject().draw(n, seed)
    return torch.from_numpy(scenes.images).float() / 255, {name: torch.from_numpy(value) for name, value in scenes.labels.items()}


def near(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Returns which positions, with shape $(B, 2)$, are within the tolerance on both axes."""
    return ((found - wanted).abs() < tolerance).all(1)


def share(right: Tensor) -> float:
    """Returns the share of true values."""
    return float(right.float().mean())


def accuracy(evaluator: Evaluator, n: int = 2000) -> dict[str, float]:
    """Returns the accuracy of the evaluator on renders of a seed that nothing else uses."""
    images, truth = render(n, TEST_SEED)
    found = evaluate(images, evaluator)
    return compare(found, truth) | {"light cosine": float(torch.cosine_similarity(found.light, truth["light"]).mean())}


def compare(found: Attributes, truth: dict[str, Tensor]) -> dict[str, float]:
    """Returns errors and accuracies of attributes."""
    return {
        "position within .4": share(near(found.position, truth["position"])),
        "position error": float((found.position - truth["position"]).abs().mean()),
        "size error": float((found.size - truth["size"]).abs().mean()),
        "shape": share(found.shape == truth["shape"]),
        "color": share(found.color == truth["color"]),
    }


def free_attributes(found: Attributes) -> dict[str, Any]:
    """Returns means, spreads and shares of the attributes, for those that were not requested."""
    return {
        "size": float(found.size.mean()),
        "size spread": float(found.size.std()),
        "position spread": float(found.position.std(0).mean()),
        "shapes": [share(found.shape == k) for k in range(len(KINDS))],
        "colors": [share(found.color == k) for k in range(len(COLORS))],
    }
