"""The worlds `sprites` and `colored-sprites`.

`sprites` draws one white shape on black, with the five factors of dSprites (Matthey et al., 2017), but with the same area for all shapes of
one scale. `colored-sprites` draws several on black, with masks, similar to Multi-dSprites (Burgess et al., 2019).
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer
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
            return {name: array[0] for name, array in self.at(random.integers(list(SPRITE_FACTORS.values()))[None]).items()}
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
    if not ((scale > 0).all() and np.allclose(np.linalg.norm(orientation, axis=1), 1, atol=1e-3)):
        raise OptionError("Scales of sprites must be positive, and orientations pairs (cosine, sine), whose squares sum to 1.")
    steps = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    x = (steps[None, None, :] - middle[:, 0, None, None]) / (scale * np.sqrt(AREA))[:, None, None]
    y = (-steps[None, :, None] - middle[:, 1, None, None]) / (scale * np.sqrt(AREA))[:, None, None]
    cosine, sine = orientation[:, 0, None, None], orientation[:, 1, None, None]
    along, across = cosine * x + sine * y, cosine * y - sine * x
    found = np.empty(along.shape, bool)
    for kind, within in enumerate(_WITHIN):
        rows = shape == kind
        found[rows] = within(along[rows], across[rows])
    return found


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x * np.sqrt(_HEART), y * np.sqrt(_HEART)
    return (x * x + y * y - 1) ** 3 <= x * x * y**3


_WITHIN = (  # the shapes of SPRITES, each with the area 1
    lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.5,
    lambda x, y: x * x / _ASPECT + y * y * _ASPECT <= 1 / np.pi,
    _heart,
)

FULL_COLORS = ("red", "green", "blue", "yellow", "magenta", "cyan")
"""The colors of sprites and pieces, as classes: all mixtures of full red, green and blue."""

TONES = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]], np.uint8)
"""Red, green and blue of each of `FULL_COLORS`."""

_MOST = 4
_TRIES = 1_000
_RADIUS = 0.41  # of the circle around a sprite of scale 1


class ColoredSprites(World):
    """Separate squares, ellipses and hearts; `count` is their smallest and largest number, at most 4."""

    name = "colored-sprites"

    def __init__(self, size: int = 32, count: tuple[int, int] = (2, 3)) -> None:
        self.size, self.count = check_picture_size(size), tuple(check_integer("count", end, 0) for end in count)
        if len(self.count) != 2 or not 1 <= self.count[0] <= self.count[1] <= _MOST:
            raise OptionError(f"count must be the smallest and the largest number of sprites, 1 to {_MOST}, got {count!r}.")
        most = self.count[1]
        self.fields = MappingProxyType(
            {
                "present": Field((most,), "bool", "whether the i-th sprite exists; existing sprites come first, the others have values 0"),
                "shape": Field((most,), "int64", "shapes", SPRITES),
                "color": Field((most,), "int64", "colors", FULL_COLORS),
                "scale": Field((most,), "float32", "scales, 0.5 to 1; areas are proportional to the square"),
                "orientation": Field((most, 2), "float32", "cosines and sines of the angles of rotation, counterclockwise"),
                "position": Field((most, 2), "float32", "centres, right and up, each in [-1, 1]"),
            }
        )

    def sample_labels(self, random: np.random.Generator) -> dict[str, object]:
        n = int(random.integers(self.count[0], self.count[1], endpoint=True))
        for _ in range(_TRIES):
            scale, position = random.uniform(0.5, 1, n), random.uniform(-1, 1, (n, 2))
            between = _REACH * np.linalg.norm(position[:, None] - position, axis=2) - _RADIUS * (scale[:, None] + scale)
            if (between[np.triu_indices(n, 1)] > 0).all():
                break
        else:
            raise OptionError(f"No arrangement of {n} separate sprites was found: use fewer.")
        angle = random.uniform(0, 2 * np.pi, n)
        drawn = {
            "present": np.ones(n, bool),
            "shape": random.integers(len(SPRITES), size=n),
            "color": random.integers(len(FULL_COLORS), size=n),
            "scale": scale,
            "orientation": np.stack([np.cos(angle), np.sin(angle)], 1),
            "position": position,
        }
        return {name: np.concatenate([array, np.zeros((self.count[1] - n, *array.shape[1:]))]) for name, array in drawn.items()}

    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        values = self.check_labels(labels)
        n = len(values["present"])
        found = np.zeros((n, self.size, self.size), np.uint8)
        tones = np.zeros((n, self.count[1] + 1, 3), np.uint8)  # 0 is the background, and black
        for k in range(self.count[1]):
            rows = np.flatnonzero(values["present"][:, k])
            shape, middle, scale, turn = (values[name][rows, k] for name in ("shape", "position", "scale", "orientation"))
            found[rows] = np.where(inside(self.size, shape, _REACH * middle, scale, turn), k + 1, found[rows])
            tones[:, k + 1] = TONES[values["color"][:, k]]
        images = tones[np.arange(n)[:, None, None], found]
        return Scenes(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), values, found if masks else None)
