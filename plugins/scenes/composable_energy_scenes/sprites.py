"""The world `sprites`: one white shape on black, after dSprites (Matthey et al., 2017), whose five factors it has.

Pictures are made anew and not equal to those of dSprites pixel by pixel: here all shapes of one scale have one area.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from composable_energy.errors import OptionError, ShapeError
from composable_energy_image.data import Field, Scenes, World
from composable_energy_scenes.renderer import picture_size

__all__ = ["SPRITES", "SPRITE_FACTORS", "Sprites", "inside"]

SPRITES = ("square", "ellipse", "heart")
"""The shapes, as their classes 0, 1 and 2."""

SPRITE_FACTORS = MappingProxyType({"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32})
"""How many values each factor has on the grid of dSprites."""

AREA = 0.3
"""Of a shape of scale 1, where the picture is the square [-1, 1] x [-1, 1]."""

_REACH = 0.59  # of middles, so that no shape is cut off
_LONG = 1.7  # an ellipse is so much longer than wide
_HEART = 3.661972  # the area within (x^2 + y^2 - 1)^3 = x^2 y^3
_CHUNK = 256


class Sprites(World):
    """A square, an ellipse or a heart, turned, scaled and moved.

    Args:
        size: Height and width of the pictures.
        grid: Whether factors are drawn from the grid of dSprites, 3 shapes, 6 scales, 40 orientations and 32 x 32 positions; without,
            all but the shape are drawn from their whole range.

    Raises:
        OptionError: The size is out of range.
    """

    name = "sprites"
    channels = 1
    fields = MappingProxyType(
        {
            "shape": Field((), "int64", "its shape", SPRITES),
            "scale": Field((), "float32", "its scale, 0.5 to 1; areas go with its square"),
            "orientation": Field((2,), "float32", "the cosine and sine of the angle by which it is turned, counterclockwise"),
            "position": Field((2,), "float32", "its middle, right and up, each in [-1, 1]"),
        }
    )

    def __init__(self, size: int = 64, grid: bool = True) -> None:
        self.size, self.grid = picture_size(size), bool(grid)

    def one(self, random: np.random.Generator) -> dict[str, object]:
        if self.grid:
            steps = random.integers(list(SPRITE_FACTORS.values()))
            return {name: array[0] for name, array in self.at(steps[None]).items()}
        angle = random.uniform(0, 2 * np.pi)
        return {
            "shape": random.integers(len(SPRITES)),
            "scale": random.uniform(0.5, 1),
            "orientation": (np.cos(angle), np.sin(angle)),
            "position": random.uniform(-1, 1, 2),
        }

    def at(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the labels of points of the grid.

        Args:
            steps: Whole numbers from 0, with shape $(N, 5)$: for each picture those of `SPRITE_FACTORS`, in their order.

        Raises:
            ShapeError: The numbers have another shape.
            OptionError: One is beyond the grid.
        """
        steps, most = np.asarray(steps), np.array(list(SPRITE_FACTORS.values()))
        if steps.ndim != 2 or steps.shape[1] != len(most):
            raise ShapeError(f"Points of the grid have shape (N, {len(most)}): {', '.join(SPRITE_FACTORS)}; got {steps.shape}.")
        if steps.dtype.kind not in "iu" or ((steps < 0) | (steps >= most)).any():
            raise OptionError(f"Points of the grid are whole numbers from 0 to below {dict(SPRITE_FACTORS)}, got {steps.dtype} beyond.")
        shape, scale, turn, x, y = steps.T
        angle = 2 * np.pi * turn / SPRITE_FACTORS["orientation"]
        found = {
            "shape": shape,
            "scale": 0.5 + 0.5 * scale / (SPRITE_FACTORS["scale"] - 1),
            "orientation": np.stack([np.cos(angle), np.sin(angle)], 1),
            "position": np.stack([x, y], 1) / (SPRITE_FACTORS["x"] - 1) * 2 - 1,
        }
        return {name: array.astype(self.fields[name].dtype) for name, array in found.items()}

    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        told = self.checked(labels)
        n = len(told["shape"])
        found = np.empty((n, self.size, self.size), bool)
        for first in range(0, n, _CHUNK):
            rows = slice(first, first + _CHUNK)
            middle, scale = _REACH * told["position"][rows], told["scale"][rows]
            found[rows] = inside(self.size, told["shape"][rows], middle, scale, told["orientation"][rows])
        return Scenes(np.where(found, np.uint8(255), np.uint8(0))[:, None], told, found.astype(np.uint8) if masks else None)


def inside(size: int, shape: np.ndarray, middle: np.ndarray, scale: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Tells which pixels have their middles within sprites.

    Args:
        size: $S$, the height and width of the pictures, which show the square [-1, 1] x [-1, 1].
        shape: Classes in `SPRITES`, with shape $(N,)$.
        middle: Where they are, right and up, with shape $(N, 2)$.
        scale: How large they are, with shape $(N,)$; the area is `AREA` times its square.
        orientation: Cosines and sines of the angles by which they are turned, with shape $(N, 2)$.

    Returns:
        Yes or no, with shape $(N, S, S)$.
    """
    steps = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    x = (steps[None, None, :] - middle[:, 0, None, None]) / (scale * np.sqrt(AREA))[:, None, None]
    y = (-steps[None, :, None] - middle[:, 1, None, None]) / (scale * np.sqrt(AREA))[:, None, None]
    cosine, sine = orientation[:, 0, None, None], orientation[:, 1, None, None]
    along, across = cosine * x + sine * y, cosine * y - sine * x
    found = np.empty(along.shape, bool)
    for kind, within in enumerate((_square, _ellipse, _heart)):
        rows = shape == kind
        found[rows] = within(along[rows], across[rows])
    return found


# Each has the area 1.


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) <= 0.5


def _ellipse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x * x / _LONG + y * y * _LONG <= 1 / np.pi


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x * np.sqrt(_HEART), y * np.sqrt(_HEART)
    return (x * x + y * y - 1) ** 3 <= x * x * y**3
