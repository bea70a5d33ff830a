"""The world `sprites`: one white shape on black, with the five factors of dSprites (Matthey et al., 2017).

The pictures differ from those of dSprites: here all shapes of one scale have the same area.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from composable_energy.errors import OptionError, ShapeError
from composable_energy_image.data import Field, Scenes, World
from composable_energy_scenes.renderer import check_picture_size

SPRITES = ("square", "ellipse", "heart")
"""The shapes, as their classes 0, 1 and 2."""

SPRITE_FACTORS = MappingProxyType({"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32})
"""Number of values of each factor on the grid of dSprites."""

AREA = 0.3
"""Area of a shape of scale 1; the picture is the square [-1, 1] x [-1, 1]."""

_REACH = 0.59  # range of centres, so that no shape is cropped
_ASPECT = 1.7  # of the ellipse
_HEART = 3.661972  # the area within (x^2 + y^2 - 1)^3 = x^2 y^3
_CHUNK = 256


class Sprites(World):
    """A rotated, scaled and shifted square, ellipse or heart.

    Args:
        grid: Whether to draw factors from the grid of dSprites, with 3 shapes, 6 scales, 40 orientations and 32 x 32 positions. Otherwise
            all but the shape are continuous.
    """

    name = "sprites"
    channels = 1
    fields = MappingProxyType(
        {
            "shape": Field((), "int64", "shape", SPRITES),
            "scale": Field((), "float32", "scale, 0.5 to 1; areas are proportional to its square"),
            "orientation": Field((2,), "float32", "cosine and sine of the angle of rotation, counterclockwise"),
            "position": Field((2,), "float32", "centre, right and up, each in [-1, 1]"),
        }
    )

    def __init__(self, size: int = 64, grid: bool = True) -> None:
        self.size, self.grid = check_picture_size(size), bool(grid)

    def sample_labels(self, random: np.random.Generator) -> dict[str, object]:
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
        """Returns the labels of points of the grid: indices from 0, with shape $(N, 5)$, in the order of `SPRITE_FACTORS`.

        Raises:
            OptionError: An index is outside the grid.
        """
        steps, most = np.asarray(steps), np.array(list(SPRITE_FACTORS.values()))
        if steps.ndim != 2 or steps.shape[1] != len(most):
            raise ShapeError(f"steps must have shape (N, {len(most)}): {', '.join(SPRITE_FACTORS)}; got {steps.shape}.")
        if steps.dtype.kind not in "iu" or ((steps < 0) | (steps >= most)).any():
            raise OptionError(f"steps must be whole numbers from 0 to below {dict(SPRITE_FACTORS)}, got {steps.dtype} outside the grid.")
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
        values = self.check_labels(labels)
        n = len(values["shape"])
        found = np.empty((n, self.size, self.size), bool)
        for first in range(0, n, _CHUNK):
            rows = slice(first, first + _CHUNK)
            middle, scale = _REACH * values["position"][rows], values["scale"][rows]
            found[rows] = inside(self.size, values["shape"][rows], middle, scale, values["orientation"][rows])
        return Scenes(np.where(found, np.uint8(255), np.uint8(0))[:, None], values, found.astype(np.uint8) if masks else None)


def inside(size: int, shape: np.ndarray, middle: np.ndarray, scale: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Returns whether the centres of pixels are inside sprites, with shape $(N, S, S)$; pictures show the square [-1, 1] x [-1, 1].

    The centres, right and up, and the cosines and sines of the orientations have shape $(N, 2)$; the classes and scales have shape $(N,)$.
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
    return x * x / _ASPECT + y * y * _ASPECT <= 1 / np.pi


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x * np.sqrt(_HEART), y * np.sqrt(_HEART)
    return (x * x + y * y - 1) ** 3 <= x * x * y**3
