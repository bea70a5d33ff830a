"""A world: pictures with known labels, drawn from a seed."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from composable_energy_image.data import Field, Scenes, World

__all__ = ["MyPlugin"]

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class MyPlugin(World):
    """A colored square on black.

    Args:
        size: Height and width of the pictures, at least 8.
    """

    name = "my-plugin"
    fields = MappingProxyType(
        {
            "color": Field((), "int64", "color of the square", tuple(COLORS)),
            "position": Field((2,), "float32", "right and up, from -1 to 1"),
        }
    )

    def __init__(self, size: int = 32) -> None:
        self.size = size

    def sample_labels(self, random: np.random.Generator) -> dict[str, Any]:
        """Returns the labels of one picture."""
        return {"color": random.integers(len(COLORS)), "position": random.uniform(-1, 1, 2)}

    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        """Returns the pictures of labels, with shape $(N, 3, S, S)$."""
        values = self.check_labels(labels)
        axis = (np.arange(self.size) + 0.5) / self.size * 2 - 1
        right, up = 0.75 * values["position"].T[:, :, None]
        inside = (abs(axis - right) < 0.25)[:, None, :] & (abs(-axis - up) < 0.25)[:, :, None]
        tones = np.array(list(COLORS.values()), np.uint8)[values["color"]]
        images = tones[:, :, None, None] * inside[:, None].astype(np.uint8)
        return Scenes(images, values, inside.astype(np.uint8) if masks else None)
